"""Short tales written for the pair, told often enough in training to be told whole.

A model of this size tells no story of its own; these let a first chat hear one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tale:
    """A tale, what it is about, and its text."""

    about: str
    text: str


TALES = (
    Tale(
        "a lamp",
        "Once upon a time there was a small lamp that was afraid of the dark. Every evening it waited for "
        "the children to come home and switch it on. One night the children were late, and the lamp sat in "
        "the dark alone. Then it saw a star in the window. The star was alone too, and it was shining. From "
        "that night on the lamp was not afraid any more.",
    ),
    Tale(
        "a fox",
        "A fox lived at the edge of a village and was hungry all winter. One day an old woman left a bowl of "
        "soup at her door to cool. The fox looked at the soup, and then at the old woman, who was as thin as "
        "he was. He went into the forest and came back with a bundle of dry wood. They shared the soup by "
        "the fire, and the fox stayed until spring.",
    ),
    Tale(
        "a robot",
        "There was once a little robot that cleaned a big house. It cleaned the kitchen, the hall and the "
        "stairs, and nobody ever thanked it. One morning it found a drawing on the floor. It was a picture "
        "of a robot with a red heart. The robot did not clean that spot. It put the drawing under its base, "
        "and every night it looked at it before it went to sleep.",
    ),
    Tale(
        "the moon",
        "Long ago the moon came down to bathe in a lake. A girl who kept geese saw her and lent her a "
        "towel. The moon had nothing to give, so she gave the girl a little of her light. Since then the "
        "girl has never lost a goose, for they are the only geese that shine at night.",
    ),
)
