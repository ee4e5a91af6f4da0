"""The peer: torch's DataLoader over the same samples, as NumPy maps.

Called by the suite `feed` with the two files, the number of samples and the number of workers; the last line that it prints is the processor
time of one warm epoch in seconds, its workers' included.
"""

import multiprocessing
import os
import sys
import time

import numpy
import torch
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)


class Samples(Dataset):
    def __init__(self, x, y, count):
        self.x = numpy.memmap(x, dtype=numpy.uint8, mode="r", shape=(count, 3, 64, 64))
        self.y = numpy.memmap(y, dtype=numpy.int64, mode="r", shape=(count,))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return torch.from_numpy(numpy.array(self.x[index])), int(self.y[index])


def processor_time():
    total = time.process_time()
    for child in multiprocessing.active_children():
        with open(f"/proc/{child.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main():
    x, y, count, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    loader = DataLoader(Samples(x, y, count), batch_size=128, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    spent = 0.0
    for _ in range(2):
        started, seen = processor_time(), 0
        for batch, labels in loader:
            seen += len(labels)
        spent = processor_time() - started
        assert seen == count
    print(spent)


main()
