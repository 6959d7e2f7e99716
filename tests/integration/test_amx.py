"""llama.cpp on a processor with AMX: weights that it would repack for AMX run in both of its places."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from cli.model_check import _load_draft, _probe_texts
from cli.process_apart import ProcessApart
from edge_verifier.logit_probe import probe_target
from provisioning.catalogue import bundled_pair

CPUINFO = Path("/proc/cpuinfo")
HAS_AMX = CPUINFO.exists() and "amx_tile" in CPUINFO.read_text()


@pytest.mark.skipif(not HAS_AMX, reason="the processor has no AMX")
@pytest.mark.parametrize("file_type", ["BF16", "F16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_weights_of_every_kind_run(tmp_path: Path, file_type: str) -> None:
    """In processes of their own: without the guard Q8_0, Q4_0 and Q4_K_M end the process with SIGSEGV."""
    source, path = bundled_pair().target_gguf, tmp_path / f"{file_type}.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(path), parameters) == 0
    with ProcessApart() as apart:
        texts = [apart.run(_probe_texts, path)[0] * 12]  # long enough for the batched kernels
        assert apart.run(_load_draft, path) == "drafts in llama.cpp"
        stored = apart.run(probe_target, path, texts)
        exact = apart.run(probe_target, source, texts, dtype="float32")
    agree = np.mean(stored.logits[0].argmax(axis=1) == exact.logits[0].argmax(axis=1))
    assert agree > 0.6, f"{file_type}: {agree:.0%} of the positions agree"
