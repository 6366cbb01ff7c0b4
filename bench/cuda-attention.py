#!/usr/bin/env python3
"""Attention on a CUDA GPU: our kernels against PyTorch's FlashAttention-2 and cuDNN backends and ONNX Runtime's
MultiHeadAttention and Attention, in one process.

    python3 bench/cuda-attention.py kernels-cuda/build/libortflash_cuda.so [--out bench/results/cuda-attention.json]
        [--ort-peer ort-peer.so --onnxruntime libonnxruntime.so.1]

bench/ort-peer.cpp says how ort-peer.so is built; ONNX Runtime's CUDA provider lies beside its library. Without them
ONNX Runtime is left out.

Each time is the median of many runs over rotated buffers of random numbers, taken with CUDA events; all that a row compares
takes turns. TFLOP/s counts 4·B·H·S²·D operations, half of that where causal. Errors are ‖Y − exact‖ / ‖exact‖, exact in double precision.
"""
import argparse
import ctypes
import datetime
import itertools
import json
import math
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import ort_peer

AUTOMATIC, FLOAT32_TILED, AMPERE, HOPPER = 0, 2, 3, 4
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ADDITIVE = 2
SETS = 3
GRAPH_RUNS = 32
ROTATED_BYTES = 128 * 2**20  # what buffers take turns for: more than twice the L2 cache of an H100
SECTIONS = ["forward_tflops", "masked_tflops", "decode", "decode_float32", "float32_tflops", "long"]
BACKENDS = {"torch_flash": SDPBackend.FLASH_ATTENTION, "torch_cudnn": SDPBackend.CUDNN_ATTENTION}


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [(n, ctypes.c_int64) for n in ("batch", "head", "sequence", "dimension")]


class Mask(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("kind", ctypes.c_int32), ("batches", ctypes.c_int32)] + [
        (n, ctypes.c_int64) for n in ("keys", "batch", "head", "query", "key")]


class Attention(ctypes.Structure):
    """OrtFlashAttention of kernels-cuda/include/ortflash_attention.h."""
    _fields_ = (
        [(n, ctypes.c_int32) for n in ("element", "kernel", "batch", "query_heads", "key_heads", "queries", "new_keys",
                                       "past_keys", "head_dimension", "value_dimension")]
        + [(n, Tensor) for n in ("query", "key", "value", "output")]
        + [(n, ctypes.c_void_p) for n in ("past_key", "past_value", "present_key", "present_value")]
        + [("mask", Mask)]
        + [(n, ctypes.c_void_p) for n in ("key_lengths", "sink", "log_sum_exp")]
        + [("scale", ctypes.c_float), ("softcap", ctypes.c_float)]
        + [(n, ctypes.c_int32) for n in ("is_causal", "left_window", "right_window", "align_end")]
        + [("masked_value", ctypes.c_float), ("allow_tf32", ctypes.c_int32)])


class Ours:
    """The C interface of the library."""

    def __init__(self, path):
        library = ctypes.CDLL(path)
        self._run = library.ortflash_attention_run
        self._workspace = library.ortflash_attention_workspace
        for function in (self._run, self._workspace):
            function.restype = ctypes.c_char_p
        self._run.argtypes = [ctypes.c_void_p] * 3
        self._workspace.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]

    def prepare(self, q, k, v, causal, kernel=AUTOMATIC, mask=None, allow_tf32=False):
        """A function that runs one call, and its output; q, k, v (B, H, S, D). None where the kernel does not serve it."""
        y = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
        see = lambda t: Tensor(t.data_ptr(), *t.stride())
        call = Attention(
            element=ELEMENTS[q.dtype], kernel=kernel, batch=q.shape[0], query_heads=q.shape[1],
            key_heads=k.shape[1], queries=q.shape[2], new_keys=k.shape[2], past_keys=0, head_dimension=q.shape[3],
            value_dimension=v.shape[3], query=see(q), key=see(k), value=see(v), output=see(y),
            scale=1 / math.sqrt(q.shape[3]), is_causal=causal, left_window=-1, right_window=-1,
            masked_value=-math.inf, allow_tf32=allow_tf32)
        if mask is not None:
            step = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride())]
            call.mask = Mask(mask.data_ptr(), ADDITIVE, mask.shape[0], mask.shape[3], *step)
        size = ctypes.c_size_t()
        if self._workspace(ctypes.byref(call), ctypes.byref(size)) is not None:
            return None, None
        workspace = torch.empty(size.value + 256, dtype=torch.uint8, device=q.device)

        def run():
            stream = torch.cuda.current_stream().cuda_stream
            wrong = self._run(ctypes.byref(call), workspace.data_ptr(), stream)
            if wrong is not None:
                raise RuntimeError(wrong.decode())
        run.keep = (workspace, y, q, k, v, mask)
        return run, y


def torch_backend(backend, causal, mask=None, grouped=False):
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return attend


def load_kernels(ours, types):
    """Calls every kernel once, which loads it: that takes long, and a GPU that waits lowers its clock."""
    for dtype, dimension, causal in itertools.product(types, (64, 128, 256), (False, True)):
        q, k, v = (torch.randn(1, 2, 256, dimension, dtype=dtype, device="cuda") for _ in range(3))
        runs = [ours.prepare(q, k, v, causal, kernel)[0] for kernel in (HOPPER, AMPERE)]
        for run in filter(None, runs):
            run()
        for backend in BACKENDS.values():
            attempt(lambda: torch_backend(backend, causal)(q, k, v))
    torch.cuda.synchronize()


class Way:
    """One way to attend, as calls that take turns over rotated buffers."""

    def __init__(self, runs):
        self.runs = runs
        for _ in range(2):
            for run in runs:
                run()
        torch.cuda.synchronize()
        once = self.once_ms(1)
        self._turns = max(1, min(10, int(8 / max(once * len(runs), 1e-3))))

    def once_ms(self, turns=None):
        """Mean of a few turns."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        turns = turns or self._turns
        begin.record()
        for _ in range(turns):
            for run in self.runs:
                run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / turns / len(self.runs)


def times_ms(ways, repeats=7):
    """
    Each way's median over repeats, by its name; None where it refuses. The ways take turns, so that a clock that rises or
    falls is the same for all of them.
    """
    made = {name: attempt(lambda runs=runs: Way(runs)) if runs else None for name, runs in ways.items()}
    times = {name: [] for name in made}
    for _ in range(repeats):
        for name, way in made.items():
            if way is not None:
                times[name].append(way.once_ms())
    return {name: statistics.median(found) if found else None for name, found in times.items()}


def in_graph(runs):
    """A replayed CUDA graph of these runs in turn: for calls shorter than their launch. None where one refuses."""
    def capture():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for run in runs + runs[:1]:
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for run in itertools.islice(itertools.cycle(runs), GRAPH_RUNS):
                run()
        return [graph.replay]
    return attempt(capture)


def attempt(function):
    try:
        return function()
    except RuntimeError:
        return None


def error_of(y, q, k, v, causal):
    """Against double precision, on the first two heads."""
    q, k, v = (t[:1, :2].double() for t in (q, k, v))
    exact = scaled_dot_product_attention(q, k, v, is_causal=causal)
    return float((y[:1, :2].double() - exact).norm() / exact.norm())


class OnnxRuntime:
    """ONNX Runtime's attention operators, on the current stream, which its provider wants not to be the default one."""
    OPERATORS = {"ort_multi_head_attention": ort_peer.multi_head_attention, "ort_attention": ort_peer.standard_attention}

    def __init__(self, peer, runtime):
        self._peer = ort_peer.OrtPeer(peer, runtime, torch.cuda.current_stream().cuda_stream)

    def prepare(self, operator, q, k, v, causal):
        """
        A function that runs the operator, with one that closes it. q, k, v (B, H, S, D), or random numbers that are as good
        in the operator's own layout.
        """
        batch, heads, tokens, dimension = q.shape
        element = ort_peer.FLOAT16 if q.dtype == torch.float16 else ort_peer.BFLOAT16
        model = self.OPERATORS[operator](element, batch, heads, tokens, dimension, causal)
        shape = (batch, tokens, heads * dimension) if operator == "ort_multi_head_attention" else tuple(q.shape)
        y = torch.full_like(q, math.nan)
        run = self._peer.prepare(model, element, {n: (t.data_ptr(), shape) for n, t in zip("qkvy", (q, k, v, y))})
        try:
            run()
            torch.cuda.synchronize()
            if torch.isnan(y[0, 0]).any():
                raise RuntimeError(operator + " has not written its output")
        except RuntimeError:
            run.close()
            raise
        run.keep = y
        return run


def forward_rows(ours, onnx_runtime, dtype):
    for dimension in (64, 128, 256):
        for tokens in (512, 1024, 4096, 16384):
            for causal in (False, True):
                shape = (16384 // tokens, 2048 // dimension, tokens, dimension)
                sets = [[torch.randn(shape, dtype=dtype, device="cuda") for _ in range(3)] for _ in range(SETS)]
                row = {"dtype": str(dtype)[6:], "heads": shape[1], "dimension": dimension, "tokens": tokens,
                       "causal": causal}
                outputs, ways = {}, {}
                for name, kernel in (("hopper", HOPPER), ("ampere", AMPERE)):
                    made = [ours.prepare(*s, causal, kernel) for s in sets]
                    if made[0][0] is not None:
                        ways[name] = [run for run, _ in made]
                        outputs[name] = lambda y=made[0][1]: y
                for name, backend in BACKENDS.items():
                    attend = torch_backend(backend, causal)
                    ways[name] = [lambda s=s, attend=attend: attend(*s) for s in sets]
                    outputs[name] = ways[name][0]
                theirs = {name: attempt(lambda: onnx_runtime.prepare(name, *sets[0], causal))
                          for name in (OnnxRuntime.OPERATORS if onnx_runtime else ())}
                ways |= {name: [run] for name, run in theirs.items() if run}
                work = 4 * shape[0] * shape[1] * tokens**2 * dimension * (0.5 if causal else 1)
                for name, time in times_ms(ways).items():
                    row[name] = time and work / time * 1e-9
                    if tokens == 1024 and time and name in outputs:
                        row[name + "_error"] = error_of(outputs[name](), *sets[0], causal)
                for run in filter(None, theirs.values()):
                    run.close()
                yield row


def masked_rows(ours, dtype):
    for dimension in (64, 128, 256):
        heads, tokens = 2048 // dimension, 4096
        shape = (4, heads, tokens, dimension)
        sets = [[torch.randn(shape, dtype=dtype, device="cuda") for _ in range(3)] for _ in range(SETS)]
        work = 4 * shape[0] * heads * tokens**2 * dimension
        masks = {kind: torch.randn(size, dtype=dtype, device="cuda")
                 for kind, size in (("1,S,S", (1, 1, tokens, tokens)), ("1,H,S,S", (1, heads, tokens, tokens)))}
        times = times_ms({kind: [ours.prepare(*s, False, mask=mask)[0] for s in sets]
                          for kind, mask in ({None: None} | masks).items()})
        for kind in masks:
            yield {"dtype": str(dtype)[6:], "heads": heads, "dimension": dimension, "tokens": tokens, "mask": kind,
                   "ours": work / times[kind] * 1e-9, "of_unmasked": times[None] / times[kind]}


def decode_rows(ours, dtype):
    for keys in (1024, 4096, 8192, 16384, 65536):
        size = 2 * 8 * keys * 128 * dtype.itemsize
        tensor = lambda heads, length: torch.randn(1, heads, length, 128, dtype=dtype, device="cuda")
        sets = [(tensor(32, 1), tensor(8, keys), tensor(8, keys))
                for _ in range(min(GRAPH_RUNS, math.ceil(ROTATED_BYTES / size)))]
        ways = {"ours": [ours.prepare(*s, False)[0] for s in sets]}
        for name, backend in BACKENDS.items():
            attend = torch_backend(backend, False, grouped=True)
            ways[name] = [lambda s=s, attend=attend: attend(*s) for s in sets]
        times = times_ms({name: in_graph(runs) for name, runs in ways.items()})
        row = {"dtype": str(dtype)[6:], "keys": keys}
        row |= {name + "_us": time and time / GRAPH_RUNS * 1e3 for name, time in times.items()}
        row["ours_tb_s"] = size / row["ours_us"] * 1e-6
        yield row


def decode_float32_rows(ours):
    """
    One query of float32, with ours without splits, too. PyTorch's memory-efficient backend has no grouped heads: there, the
    heads that share a key head are its queries, which reads keys once as well.
    """
    attend = torch_backend(SDPBackend.EFFICIENT_ATTENTION, False)
    for heads, key_heads, dimension, keys in itertools.product((32,), (8, 32), (128, 64), (1024, 4096, 8192, 16384, 65536)):
        size = 2 * key_heads * keys * dimension * 4
        tensor = lambda heads, length: torch.randn(1, heads, length, dimension, device="cuda")
        sets = [(tensor(heads, 1), tensor(key_heads, keys), tensor(key_heads, keys))
                for _ in range(min(GRAPH_RUNS, math.ceil(ROTATED_BYTES / size)))]
        ways = {"ours": [ours.prepare(*s, False)[0] for s in sets],
                "without_splits": [ours.prepare(*s, False, FLOAT32_TILED)[0] for s in sets],
                "torch_efficient": [lambda q=q, k=k, v=v: attend(q.view(1, key_heads, -1, dimension), k, v)
                                    for q, k, v in sets]}
        times = times_ms({name: in_graph(runs) for name, runs in ways.items()})
        row = {"heads": heads, "key_heads": key_heads, "dimension": dimension, "keys": keys}
        row |= {name + "_us": time and time / GRAPH_RUNS * 1e3 for name, time in times.items()}
        row["ours_tb_s"] = size / row["ours_us"] * 1e-6
        yield row


def float32_rows(ours):
    """Float32, exact and with operands in tf32, against PyTorch's memory-efficient backend, which is exact too unless asked."""
    for dimension, tokens, causal in itertools.product((64, 128, 256), (512, 4096), (False, True)):
        shape = (16384 // tokens, 2048 // dimension, tokens, dimension)
        sets = [[torch.randn(shape, device="cuda") for _ in range(3)] for _ in range(SETS)]
        attend = torch_backend(SDPBackend.EFFICIENT_ATTENTION, causal)
        made = {name: [ours.prepare(*s, causal, allow_tf32=name == "tf32") for s in sets] for name in ("exact", "tf32")}
        ways = {name: [run for run, _ in pairs] for name, pairs in made.items()}
        ways["torch_efficient"] = [lambda s=s: attend(*s) for s in sets]
        work = 4 * shape[0] * shape[1] * tokens**2 * dimension * (0.5 if causal else 1)
        row = {"heads": shape[1], "dimension": dimension, "tokens": tokens, "causal": causal}
        row |= {name: time and work / time * 1e-9 for name, time in times_ms(ways).items()}
        row |= {name + "_error": error_of(pairs[0][1], *sets[0], causal) for name, pairs in made.items()}
        row["torch_efficient_error"] = error_of(attend(*sets[0]), *sets[0], causal)
        yield row


def long_row(ours):
    """131,072 tokens in one call, and the memory that takes beyond its inputs and output."""
    q, k, v = (torch.randn(1, 8, 131072, 128, dtype=torch.float16, device="cuda") for _ in range(3))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run, y = ours.prepare(q, k, v, True)
    time = times_ms({"ours": [run]}, repeats=3)["ours"]
    extra = torch.cuda.max_memory_allocated() - before - y.numel() * 2
    return {"tokens": 131072, "heads": 8, "dimension": 128, "causal": True,
            "tflops": 2 * 8 * 131072**2 * 128 / time * 1e-9, "extra_bytes": extra}


def print_rows(title, rows):
    print(title)
    for row in rows:
        print("  " + "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                               for name, value in row.items() if value is not None), flush=True)
        yield row


def ratio(rows, ours, peers):
    """Geometric mean and least of our speed over the fastest of these peers', where all of them ran."""
    found = [row[ours] / max(row[p] for p in peers) for row in rows if row.get(ours) and all(row.get(p) for p in peers)]
    return {"geometric_mean": statistics.geometric_mean(found), "least": min(found), "rows": len(found)} if found else None


def summarise(result):
    """What the kernels are measured by: speed over that of each peer, time over cuDNN's in decode, part of unmasked speed."""
    forward = result["forward_tflops"]
    cudnn, mha = "torch_cudnn", "ort_multi_head_attention"
    summary = {"hopper / " + "+".join(peers): ratio(forward, "hopper", peers)
               for peers in (["torch_flash"], [cudnn], [mha], [cudnn, mha], ["ort_attention"])}
    summary["ampere / torch_flash"] = ratio(forward, "ampere", ["torch_flash"])
    for dimension in (64, 128, 256):
        rows = [row for row in forward if row["dimension"] == dimension]
        summary[f"hopper / {cudnn}, {dimension}"] = ratio(rows, "hopper", [cudnn])
        summary[f"ampere / torch_flash, {dimension}"] = ratio(rows, "ampere", ["torch_flash"])
    summary["masked / unmasked"] = {f"{row['dtype']} {row['dimension']} {row['mask']}": row["of_unmasked"] for row in result["masked_tflops"]}
    summary["decode, microseconds, ours and cuDNN's"] = {
        f"{row['dtype']} {row['keys']}": [row["ours_us"], row.get("torch_cudnn_us")] for row in result["decode"]}
    summary["float32, exact / torch_efficient"] = ratio(result["float32_tflops"], "exact", ["torch_efficient"])
    errors = [row["hopper_error"] / row["torch_flash_error"] for row in forward
              if row.get("hopper_error") and row.get("torch_flash_error")]
    summary["largest error / torch_flash's"] = max(errors) if errors else None
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libortflash_cuda.so")
    parser.add_argument("--out", help="write the results to this JSON file")
    parser.add_argument("--types", nargs="+", choices=["float16", "bfloat16"], default=["float16", "bfloat16"])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="parts to measure; a summary needs all")
    parser.add_argument("--ort-peer", help="what bench/ort-peer.cpp was compiled to")
    parser.add_argument("--onnxruntime", help="libonnxruntime.so.1, its CUDA provider beside it")
    arguments = parser.parse_args()
    types = [getattr(torch, name) for name in arguments.types]
    with torch.cuda.stream(torch.cuda.Stream()):
        measure(arguments, types)


def measure(arguments, types):
    ours = Ours(arguments.library)
    onnx_runtime = OnnxRuntime(arguments.ort_peer, arguments.onnxruntime) if arguments.ort_peer else None
    torch.manual_seed(0)
    load_kernels(ours, types)
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
              "cudnn": torch.backends.cudnn.version(), "date": datetime.date.today().isoformat()}
    sections = (
        ("forward_tflops", [(f"forward, {t}, TFLOP/s", forward_rows(ours, onnx_runtime, t)) for t in types]),
        ("masked_tflops", [(f"additive mask, {t}", masked_rows(ours, t)) for t in types]),
        ("decode", [(f"decode, {t}, 32 heads on 8 of 128", decode_rows(ours, t)) for t in types]),
        ("decode_float32", [("decode, float32", decode_float32_rows(ours))]),
        ("float32_tflops", [("float32, TFLOP/s", float32_rows(ours))]),
        ("long", [("131,072 tokens", (long_row(ours) for _ in range(1)))]),
    )
    for section, parts in sections:
        if section not in arguments.only:
            continue
        result[section] = []
        for title, rows in parts:
            for row in print_rows(title, rows):
                result[section].append(row)
                save(result, arguments.out)
    if set(arguments.only) == set(SECTIONS):
        result["summary"] = summarise(result)
        print(json.dumps(result["summary"], indent=1))
        save(result, arguments.out)


def save(result, path):
    """After every row: what ends early leaves what it has."""
    if path:
        with open(path, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
