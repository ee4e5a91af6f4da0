"""The peer: accelerate's disk offload of the same Llama, as transformers has it.

Called by the suite `paging` with a task as JSON in its last argument; the last line that it prints is a report as JSON
(both as in benches/src/contest.rs). What fits the budget stays in memory, whole decoder blocks at a time; the rest goes to disk.

variant "accelerate":        load_checkpoint_and_dispatch, as accelerate's documentation has it: what is offloaded is written anew.
                             It reads a whole file before it places anything, so the checkpoint is in shards of a block each
variant "accelerate_direct": the same hooks over the checkpoint itself, as transformers calls accelerate: nothing is written
"""

import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["TQDM_DISABLE"] = "1"
import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def empty(shape):
    config = LlamaConfig(
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["hidden"] // 128,
        num_key_value_heads=shape["hidden"] // 128 // 3,
        vocab_size=shape["vocabulary"],
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )
    with init_empty_weights():
        return LlamaForCausalLM(config).float().eval()


def place(model, budget):
    # The largest split that accelerate itself finds, with room within the budget for the block that is in use: it does not
    # count that for a processor's memory.
    block = sum(weight.numel() for weight in model.model.layers[0].parameters()) * 4
    return infer_auto_device_map(
        model, max_memory={"cpu": budget - block}, no_split_module_classes=["LlamaDecoderLayer"]
    )


def shards(file, folder):
    """The same checkpoint in shards, made by the first call; how it is made is no part of what is measured."""
    place = os.path.join(folder, "shards")
    if not os.path.exists(place):
        os.makedirs(place)
        with safe_open(file, framework="pt") as weights:
            shard = lambda name: "-".join(name.split(".")[:3]) + ".safetensors"
            names = {name: shard(name) for name in weights.keys()}
            for wanted in set(names.values()):
                part = {name: weights.get_tensor(name) for name in names if names[name] == wanted}
                save_file(part, os.path.join(place, wanted), metadata={"format": "pt"})
        with open(os.path.join(place, "model.safetensors.index.json"), "w") as index:
            json.dump({"weight_map": names}, index)
    for name in os.listdir(place) + [file]:
        with open(os.path.join(place, name)) as shard:
            os.fsync(shard.fileno())
            os.posix_fadvise(shard.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return place


def written_anew(model, places, file, folder):
    offload = os.path.join(folder, "offload")
    # By default it would write what stays in memory too, and read it back: more than the cap allows.
    return load_checkpoint_and_dispatch(
        model,
        file,
        device_map=places,
        offload_folder=offload,
        offload_state_dict=False,
        dtype=torch.float32,
        force_hooks=True,
    )


def direct(model, places, file):
    device = lambda name: next(d for m, d in places.items() if m == "" or name == m or name.startswith(m + "."))
    index = {}
    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():
            if device(name) == "disk":
                index[name] = {"safetensors_file": file, "weight_name": name, "dtype": "float32"}
            else:
                set_module_tensor_to_device(model, name, "cpu", value=weights.get_tensor(name).clone())
    return dispatch_model(model, device_map=places, main_device="cpu", offload_index=index, force_hooks=True)


def counters():
    with open("/proc/self/io") as lines:
        counts = dict(line.split(": ") for line in lines)
    return int(counts["read_bytes"]), int(counts["write_bytes"])


def main():
    task = json.loads(sys.argv[-1])
    shape, file, rows = task["shape"], task["files"][0], task["rows"]
    if task["variant"] == "accelerate":
        file = shards(file, task["folder"])
    if task["door"]:
        # Only now: what the interpreter and its libraries take is not counted against the peer.
        with open(task["door"], "w") as door:
            door.write(str(os.getpid()))
    started, (read_before, written_before) = time.perf_counter(), counters()
    model = empty(shape)
    places = place(model, task["budget"])
    if task["variant"] == "accelerate":
        model = written_anew(model, places, file, task["folder"])
    else:
        model = direct(model, places, file)
    report = {"load": time.perf_counter() - started, "passes": [], "checksum": "", "pager": None, "charged": None}
    past = None
    with torch.inference_mode():
        for position in range(task["passes"]):
            tokens = [[(row * 31 + position * 7919 + 13) % shape["vocabulary"]] for row in range(rows)]
            at, (read, _), cpu = time.perf_counter(), counters(), time.process_time()
            output = model(torch.tensor(tokens), past_key_values=past, use_cache=True)
            logits, past = output.logits.flatten(), output.past_key_values
            logits[0].item()
            now = time.perf_counter()
            spent = {"seconds": now - at, "read": counters()[0] - read, "cpu": time.process_time() - cpu}
            if position == 0:
                report.update(first=now - started, first_read=counters()[0] - read_before)
            report["passes"].append({**spent, "paging_cpu": 0.0})
    report["logits"] = logits[:16].tolist()
    report["written"] = counters()[1] - written_before
    with open("/proc/self/status") as lines:
        report["peak"] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps(report))


main()
