"""ONNX Runtime's own attention as a peer, in this process and on the caller's stream, through bench/ort-peer.cpp.

Models of one node are written here as ONNX's protobuf messages: the machine that runs the benchmark may have no onnx package.
"""
import ctypes
import struct

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # TensorProto.DataType


def varint(n):
    """A number of protobuf's wire format."""
    out = bytearray()
    while True:
        n, low = n >> 7, n & 127
        out.append(low | (128 if n else 0))
        if not n:
            return bytes(out)


def field(number, value):
    """A field: an int as varint, a float as 32 bits, text and messages with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_info(name, element, shape):
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, element) + field(2, dims)))


def one_node_model(op, domain, element, inputs, outputs, **attributes):
    """A model of one node with int and float attributes; inputs and outputs map names to shapes."""
    node = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs) + field(4, op)
    for name, value in attributes.items():
        kind, place = (1, 2) if isinstance(value, float) else (2, 3)
        node += field(5, field(1, name) + field(place, value) + field(20, kind))
    node += field(7, domain)
    graph = field(1, node) + field(2, "bench")
    graph += b"".join(field(11, tensor_info(name, element, shape)) for name, shape in inputs.items())
    graph += b"".join(field(12, tensor_info(name, element, shape)) for name, shape in outputs.items())
    opsets = field(8, field(1, "") + field(2, 23)) + field(8, field(1, "com.microsoft") + field(2, 1))
    return field(1, 10) + field(7, graph) + opsets


def multi_head_attention(element, batch, heads, tokens, dimension, causal):
    """com.microsoft MultiHeadAttention; queries, keys, values and output (B, S, H·D)."""
    shape = (batch, tokens, heads * dimension)
    return one_node_model("MultiHeadAttention", "com.microsoft", element, dict.fromkeys(("q", "k", "v"), shape), {"y": shape},
                          num_heads=heads, unidirectional=int(causal))


def standard_attention(element, batch, heads, tokens, dimension, causal):
    """ONNX's Attention, version 23; queries, keys, values and output (B, H, S, D)."""
    shape = (batch, heads, tokens, dimension)
    return one_node_model("Attention", "", element, dict.fromkeys(("q", "k", "v"), shape), {"y": shape},
                          is_causal=int(causal))


class OrtPeer:
    """Sessions of ONNX Runtime. `stream`: a CUDA stream that is not the default one; None runs on the CPU."""

    def __init__(self, peer, runtime, stream):
        self._library = ctypes.CDLL(peer)
        self._stream = stream
        for name in ("start", "open", "bind", "run"):
            getattr(self._library, "ort_peer_" + name).restype = ctypes.c_char_p
        self._check(self._library.ort_peer_start(runtime.encode()))

    @staticmethod
    def _check(wrong):
        if wrong is not None:
            raise RuntimeError(wrong.decode())

    def prepare(self, model, element, tensors):
        """A function that enqueues a run of the model. `tensors`: name to (address, shape); the output is "y"."""
        session = ctypes.c_void_p()
        library = self._library
        try:
            self._check(library.ort_peer_open(model, ctypes.c_size_t(len(model)), ctypes.c_void_p(self._stream),
                                              ctypes.byref(session)))
            for name, (address, shape) in tensors.items():
                elements = 1
                for size in shape:
                    elements *= size
                self._check(library.ort_peer_bind(
                    session, int(name == "y"), name.encode(), ctypes.c_void_p(address),
                    ctypes.c_size_t(elements * (4 if element == FLOAT else 2)), element,
                    (ctypes.c_int64 * len(shape))(*shape), ctypes.c_size_t(len(shape))))
        except RuntimeError:
            library.ort_peer_close(session)
            raise
        run_binding = library.ort_peer_run

        def run():
            self._check(run_binding(session))
        run.close = lambda: library.ort_peer_close(session)
        return run
