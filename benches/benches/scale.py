"""The peer of the suite `scale`: answers each line `STRATEGY COUNT` with the nanoseconds of so many calculations."""
import sys
import time
import types

try:
    import torch  # noqa: F401
except ImportError:
    # The package imports it whatever is asked of it; the calculation does not use it.
    sys.modules["torch"] = types.ModuleType("torch")

import logging

from deep_dimensions import ScalingConfig
from deep_dimensions.interfaces.memory_provider import MemoryInfo
from deep_dimensions.scaling.calculator import DimensionCalculator

logging.disable(logging.CRITICAL)
DIMS = (64, 3, 2048, 2048)
TARGET = 96 << 20
calculator = DimensionCalculator()
memory = MemoryInfo(total=TARGET, available=TARGET, used=0, device_type="cpu")


def calculate(strategy):
    config = ScalingConfig(memory_threshold=1.0, safety_margin=0.0, strategy=strategy)
    return lambda: calculator.calculate(DIMS, "float32", 4, memory, config)


work = {name: calculate(name) for name in ("linear", "exponential")}
for name, run in work.items():
    result = run()
    used = result.estimated_memory / TARGET
    print(f"{name} {result.scaled_dimensions} {used:.3f}", flush=True)
for line in sys.stdin:
    name, count = line.split()
    run = work[name]
    started = time.perf_counter_ns()
    for _ in range(int(count)):
        run()
    print(time.perf_counter_ns() - started, flush=True)
