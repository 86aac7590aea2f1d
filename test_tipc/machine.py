"""Prints what decides, before a row runs, whether this machine can run it: GPUs, TensorRT, instructions, packages."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising.machine import adds_bytes_exactly, cpu_flags

PACKAGES = ("onnx", "onnxruntime", "openvino", "aiohttp")


def main():
    """One key=value a line."""
    import paddle
    from paddle import inference

    cuda = paddle.device.is_compiled_with_cuda()
    facts = {
        "paddle": paddle.__version__,
        "cuda": int(cuda),
        "gpus": paddle.device.cuda.device_count() if cuda else 0,
        "tensorrt": int(inference.get_trt_compile_version() != (0, 0, 0)),
        "bf16": int("avx512_bf16" in cpu_flags()),
        "vnni": int(adds_bytes_exactly()),
    }
    facts |= {name: int(importlib.util.find_spec(name) is not None) for name in PACKAGES}
    for key, value in facts.items():
        print(f"{key}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
