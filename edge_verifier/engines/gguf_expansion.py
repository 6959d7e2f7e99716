"""GGUF files expanded to fp32, kept in a cache folder.

llama.cpp multiplies 16-bit and quantised weights with activations that it rounds to match. With the same
weights written as fp32 it rounds nothing, which is what `float32` promises.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from protocol.errors import MissingLibraryError, ModelError

logger = logging.getLogger(__name__)


def expansion_folder() -> Path:
    """Where expanded files are kept: `$XDG_CACHE_HOME/sled/gguf`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sled" / "gguf"


def expanded_file(path: Path, sha256: str, folder: Path) -> Path:
    """The fp32 copy of the GGUF file `path`, made in `folder` when it is not there yet.

    Args:
        sha256: of `path`; it names the copy.

    Raises:
        ModelError: the `gguf` library is missing, cannot read the file, or there is no room for the copy.
    """
    copy = folder / f"{sha256[:32]}-f32.gguf"
    if copy.is_file():
        return copy
    partial = folder / f"{copy.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, partial)
        partial.replace(copy)
    except ImportError as error:
        raise MissingLibraryError(
            f"fp32 from a GGUF file needs the gguf library ({error})",
            hint="pip install 'sled[verifier-gguf]'",
        ) from error
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"{path} cannot be expanded to fp32 in {folder}: {error}",
            hint="use dtype auto, which takes the weights as they are stored",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    logger.info("%s expanded to fp32: %s", path, copy)
    return copy


def _write(source: Path, path: Path) -> None:
    import gguf  # noqa: PLC0415 - of the optional extra verifier-gguf only
    import numpy as np  # noqa: PLC0415 - the same
    from gguf.quants import dequantize  # noqa: PLC0415 - the same

    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(path, architecture, use_temp_file=True)
    _copy_metadata(reader, writer, gguf)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_metadata(reader: Any, writer: Any, gguf: Any) -> None:  # noqa: ANN401 - gguf ships no types
    for name, field in reader.fields.items():
        if name == gguf.Keys.General.ARCHITECTURE or name.startswith("GGUF."):
            continue
        if name == gguf.Keys.General.FILE_TYPE:
            writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
            continue
        kind = field.types[0]
        sub_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub_kind)
