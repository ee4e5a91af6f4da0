"""The peers of the suite `infinite`: infinite-tensor and tensorstore's virtual_chunked, on the work that the suite gives itself.

Called with a task as JSON in its last argument; the last line that it prints is a report as JSON. One task is one process, so
that nobody starts with what another left in memory.

    {"peer": "infinite-tensor" | "tensorstore", "work": ..., "window": 64, "side": 32, "rounds": 5, "limit": 67108864}

work "cold":   one f32 tensor, endless in two dimensions, of windows of window² that a function hands out ready-made; each round
               reads side² windows at once that nobody has read
work "warm":   the same, once read before the clock starts; each round reads them again
work "raster": three layers, each the mean of the one before over 3² elements with a halo of 8 around windows of window²; one
               round reads side² windows in squares of two by two, row by row, within `limit` bytes (infinite-tensor only:
               virtual_chunked must not read in its callback)
work "store":  one layer kept on disk in `folder`: each round writes side² windows, compressed with zstd, and reads them back
               from a store that was opened again (tensorstore only, as a plain Zarr v3 array)

The report: windows (per round), seconds and cpu (processor seconds of all threads), one entry per round; calls of the function
and distinct windows over all rounds; resident, the most that the process had (`VmHWM`), and baseline, what it had when its
libraries were loaded.
"""

import json
import sys
import time


def memory(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


class Clock:
    """Times rounds by the clock and by the processor."""

    def __init__(self):
        self.seconds, self.cpu = [], []

    def round(self, work):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - wall)
        return result


class Calls:
    """Counts the calls of a window function, and for how many distinct windows they were."""

    def __init__(self):
        self.count, self.seen = 0, set()

    def note(self, key):
        self.count += 1
        self.seen.add(key)


def infinite_tensor(task, clock, calls):
    import torch
    from infinite_tensor import InfiniteTensor, MemoryTileStore, TensorWindow, __version__

    torch.set_num_threads(1)
    size, side = task["window"], task["side"]
    store = MemoryTileStore()
    store._cache_size_bytes = task.get("limit") or None
    plain = TensorWindow((size, size))
    ready = torch.ones(size, size)

    def hand_out(index):
        calls.note((0, *index))
        return ready

    if task["work"] in ("cold", "warm"):
        tensor = InfiniteTensor((None, None), hand_out, plain, tile_store=store)
        at = lambda n: tensor[n * side * size : (n + 1) * side * size, 0 : side * size]
        if task["work"] == "warm":
            at(0)
        calls.count, calls.seen = 0, set()
        for n in range(task["rounds"]):
            out = clock.round(lambda: at(n if task["work"] == "cold" else 0))
            assert out.shape == (side * size, side * size) and out[-1, -1] == 1
        return __version__

    halo = 8
    wide = TensorWindow((size + 2 * halo, size + 2 * halo), stride=(size, size), offset=(-halo, -halo))

    def noise(index):
        calls.note((0, *index))
        generator = torch.Generator().manual_seed(hash(index) & 0x7FFFFFFF)
        return torch.rand(size, size, generator=generator)

    def blur(layer):
        def blurred(index, around):
            calls.note((layer, *index))
            mean = torch.nn.functional.avg_pool2d(around[None, None], 3, stride=1, padding=1)[0, 0]
            return mean[halo:-halo, halo:-halo].contiguous()

        return blurred

    tensor = InfiniteTensor((None, None), noise, plain, tile_store=store)
    for layer in (1, 2, 3):
        tensor = InfiniteTensor(
            (None, None), blur(layer), plain, args=(tensor,), args_windows=(wide,), tile_store=store
        )

    def sweep():
        step = 2 * size
        for top in range(0, side * size, step):
            for left in range(0, side * size, step):
                tensor[top : top + step, left : left + step]

    for _ in range(task["rounds"]):
        clock.round(sweep)
    return __version__


def tensorstore(task, clock, calls):
    import importlib.metadata

    import numpy
    import tensorstore as ts

    size, side = task["window"], task["side"]
    span = side * size
    ready = numpy.ones((size, size), numpy.float32)
    if task["work"] == "store":
        written_and_read(task, clock, ts, ready)
        return importlib.metadata.version("tensorstore")

    def hand_out(domain, chunk, parameters):
        calls.note(tuple(domain.origin))
        chunk[...] = ready

    # The cache holds all that is read, as long as the limit allows.
    limit = task.get("limit") or (task["rounds"] + 1) * span * span * 8
    context = ts.Context({"cache_pool": {"total_bytes_limit": limit}, "data_copy_concurrency": {"limit": 1}})
    endless = ts.IndexDomain(rank=2)
    tensor = ts.virtual_chunked(
        read_function=hand_out,
        dtype=ts.float32,
        domain=endless,
        chunk_layout=ts.ChunkLayout(read_chunk_shape=[size, size], write_chunk_shape=[size, size]),
        context=context,
    )
    at = lambda n: tensor[n * span : (n + 1) * span, 0:span].read().result()
    if task["work"] == "warm":
        at(0)
    calls.count, calls.seen = 0, set()
    for n in range(task["rounds"]):
        out = clock.round(lambda: at(n if task["work"] == "cold" else 0))
        assert out.shape == (span, span) and out[-1, -1] == 1
    return importlib.metadata.version("tensorstore")


def written_and_read(task, clock, ts, ready):
    import numpy

    size, span = task["window"], task["window"] * task["side"]
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},
    ]
    metadata = {
        "shape": [span, span],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size, size]}},
        "codecs": codecs,
    }
    content = numpy.random.default_rng(7).random((span, span), numpy.float32)
    for n in range(task["rounds"]):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{task['folder']}/{n}"}}

        def both():
            array = ts.open({**spec, "metadata": metadata}, create=True).result()
            array.write(content).result()
            return ts.open(spec).result().read().result()

        assert numpy.array_equal(clock.round(both), content)


def main():
    task = json.loads(sys.argv[-1])
    peers = {"infinite-tensor": infinite_tensor, "tensorstore": tensorstore}
    work = peers[task["peer"]]
    # Loaded before anything is measured.
    if task["peer"] == "infinite-tensor":
        import torch  # noqa: F401
        import infinite_tensor as _  # noqa: F401
    else:
        import numpy  # noqa: F401
        import tensorstore as _  # noqa: F401
    baseline = memory("VmRSS")
    clock, calls = Clock(), Calls()
    version = work(task, clock, calls)
    report = {
        "peer": task["peer"],
        "version": version,
        "work": task["work"],
        "windows": task["side"] ** 2,
        "seconds": clock.seconds,
        "cpu": clock.cpu,
        "calls": calls.count,
        "distinct": len(calls.seen),
        "resident": memory("VmHWM"),
        "baseline": baseline,
    }
    print(json.dumps(report))


main()
