"""Fresh interpreters: importing one side brings in nothing of the other side's weight."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODELS = ("torch", "transformers", "llama_cpp")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("protocol.codec", ("paho", "typer", "rich", *MODELS)),
        ("protocol.coupling", ("paho", "typer", "rich", *MODELS)),
        ("protocol.topics", ("paho", *MODELS)),
        ("broker_config", ("paho", "cryptography", *MODELS)),
        ("device_agent.agent", ("torch", "transformers", "typer", "rich", "cryptography")),
        ("edge_verifier.service", ("torch", "transformers", "llama_cpp", "typer", "rich")),
        ("provisioning.bundle", (*MODELS, "typer", "rich")),
        ("fleet.operator", (*MODELS, "typer", "rich")),
        ("cli.main", (*MODELS, "paho", "cryptography", "numpy", "rich.markdown")),
    ],
)
def test_import_stays_light(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_needs_no_model_library() -> None:
    """`sled --help` works where neither torch nor llama.cpp can even be found."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {MODELS!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from cli.main import run\n"
        "sys.exit(run(['--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stderr == ""
