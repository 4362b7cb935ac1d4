"""PyTorch's peers: SDPA by its flash and cuDNN backends, FlexAttention, cuBLAS, tinygemm's int4, torch.compile, and a plain copy.

Each runs as a CUDA graph over several sets of inputs, timed by CUDA events, as ours does (../ours.ts). Written against PyTorch 2.5 to 2.9; a
name that another version lacks makes that peer absent, by that name.
"""
import gc
import math

from protocol import Absent, mix, serve, sets_for

NAMES = ["copy", "sdpa_flash", "sdpa_cudnn", "flex_attention", "cublas", "tinygemm", "compile"]
PAGE = 64
QUERY_AMPLITUDE = 4

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None


def indices(count):
    return torch.arange(count, dtype=torch.int64, device="cuda")


def uniform(shape, seed, amplitude=1, dtype=None):
    """In pieces: the integers take eight bytes each."""
    count = math.prod(shape)
    out = torch.empty(count, dtype=dtype or torch.bfloat16, device="cuda")
    for begin in range(0, count, 2**26):
        piece = indices(min(2**26, count - begin)) + begin
        # A 24-bit integer over 2^23 is exact in f32, so that it is rounded once.
        out[begin : begin + piece.numel()] = amplitude * ((mix(piece, seed) >> 8).float() / 2**23 - 1)
    return out.view(*shape)


def int4_codes(outputs, columns):
    """Codes 0 to 15 [outputs, columns] and scales [outputs, columns / 32], as ../case.ts."""
    codes = torch.empty(outputs * columns, dtype=torch.uint8, device="cuda")
    for begin in range(0, codes.numel(), 2**26):
        piece = indices(min(2**26, codes.numel() - begin)) + begin
        codes[begin : begin + piece.numel()] = (mix(piece, 5) >> 28).to(torch.uint8)
    low = (mix(indices(codes.numel() // 32), 6) >> 31).bool()
    scales = torch.where(low, 2.0**-7, 2.0**-6).to(torch.bfloat16)
    return codes.view(outputs, columns), scales.view(outputs, columns // 32)


class Graph:
    """`make()` gives a set of inputs as a function without arguments; all sets are one graph, whose outputs all stay."""

    def __init__(self, make, size, least):
        units = [make() for _ in range(sets_for(size, least))]
        self.units = len(units)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Compilers, workspaces and choices of kernels are done before the capture.
            for _ in range(2):
                for unit in units:
                    unit()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = [unit() for unit in units]
        self.kept = units
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def rows(self, rows):
        self.graph.replay()
        torch.cuda.synchronize()
        first = self.outputs[0][0]
        return first.reshape(-1, first.shape[-1])[rows].float().cpu().tolist()

    def run(self, runs):
        self.begin.record()
        for _ in range(runs):
            self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end)

    def close(self):
        self.graph.reset()
        self.outputs = self.kept = None
        gc.collect()
        torch.cuda.empty_cache()


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sdpa(backend, causal, grouped):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}[backend]

    def attend(q, k, v):
        with sdpa_kernel(chosen):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return attend


def flex(queries, keys, causal, window, softcap, grouped):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def visible(_batch, _head, q, k):
        return (q >= k) & (q - k < window) if window else q >= k

    def capped(score, _batch, _head, _q, _k):
        return softcap * torch.tanh(score / softcap)

    mask = create_block_mask(visible, None, None, queries, keys, device="cuda") if causal else None
    return lambda q, k, v: compiled(q, k, v, score_mod=capped if softcap else None, block_mask=mask, enable_gqa=grouped)


def attempt(peer, attend, q, k, v):
    """A backend of SDPA that refuses a shape says so when it is called. (FlexAttention would be compiled once more.)"""
    if peer == "flex_attention":
        return
    try:
        attend(q, k, v)
    except RuntimeError as error:
        if "No available kernel" in str(error):
            raise Absent("no kernel of this backend for this shape on this GPU") from error
        raise


def prefill(peer, work, least):
    tokens, heads, kv_heads, dim = work["tokens"], work["queryHeads"], work["kvHeads"], work["headDim"]
    grouped = heads != kv_heads
    if peer == "flex_attention":
        attend = flex(tokens, tokens, True, work["window"], work["softcap"], grouped)
    elif work["window"] or work["softcap"]:
        raise Absent("SDPA has neither windows nor soft caps")
    else:
        attend = sdpa(peer, True, grouped)

    def make():
        q = uniform((1, tokens, heads, dim), 1, QUERY_AMPLITUDE).transpose(1, 2)
        k, v = (uniform((1, tokens, kv_heads, dim), seed).transpose(1, 2) for seed in (2, 3))
        return lambda: (attend(q, k, v).transpose(1, 2),)

    q, k, v = (torch.zeros(1, n, tokens, dim, dtype=torch.bfloat16, device="cuda") for n in (heads, kv_heads, kv_heads))
    attempt(peer, attend, q, k, v)
    del q, k, v
    return Graph(make, 4 * tokens * heads * dim * 2, least)


def decode(peer, work, least):
    batch, keys, heads, kv_heads, dim = (work[n] for n in ("sequences", "keys", "queryHeads", "kvHeads", "headDim"))
    grouped = heads != kv_heads
    attend = flex(1, keys, False, 0, 0, grouped) if peer == "flex_attention" else sdpa(peer, False, grouped)

    def plain(seed):
        # Ours lie in pages, one after the other: page p of a sequence holds [kvHeads, 64, headDim].
        pages = uniform((batch, keys // PAGE, kv_heads, PAGE, dim), seed)
        return pages.transpose(1, 2).reshape(batch, kv_heads, keys, dim)

    def make():
        q = uniform((batch, heads, 1, dim), 1, QUERY_AMPLITUDE)
        k, v = plain(2), plain(3)
        return lambda: (attend(q, k, v),)

    q = torch.zeros(batch, heads, 1, dim, dtype=torch.bfloat16, device="cuda")
    k = torch.zeros(batch, kv_heads, keys, dim, dtype=torch.bfloat16, device="cuda")
    attempt(peer, attend, q, k, k)
    del q, k
    return Graph(make, 2 * batch * keys * kv_heads * dim * 2, least)


# ── matrices and rows ─────────────────────────────────────────────────────────────────────────────────────────────────


def int4(peer, work, least):
    rows, columns, outputs = work["rows"], work["columns"], work["outputs"]
    codes, scales = int4_codes(outputs, columns)
    if peer == "cublas":
        weight = ((codes.to(torch.bfloat16) - 8).view(outputs, -1, 32) * scales.unsqueeze(-1)).view(outputs, columns)
        size = weight.numel() * 2

        def make():
            x, own = uniform((rows, columns), 1), weight.clone()
            return lambda: (torch.matmul(x, own.t()),)
    else:
        if not hasattr(torch, "_weight_int4pack_mm"):
            raise Absent("this PyTorch has no _weight_int4pack_mm")
        # Two codes per byte, the even column in the high half; w = (code - 8) * scale + zero.
        packed = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).contiguous(), 8)
        pairs = torch.stack([scales, torch.zeros_like(scales)], dim=-1).transpose(0, 1).contiguous()
        size = codes.numel() // 2 + pairs.numel() * 2

        def make():
            x, own, own_pairs = uniform((rows, columns), 1), packed.clone(), pairs.clone()
            return lambda: (torch._weight_int4pack_mm(x, own, 32, own_pairs),)

    return Graph(make, size, least)


def rms_norm(work, least):
    rows, columns = work["rows"], work["columns"]

    @torch.compile(dynamic=False)
    def fused(x, residual, weight):
        total = x + residual
        wide = total.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
        return normed.to(torch.bfloat16), total

    def make():
        x, residual = (uniform((rows, columns), seed) for seed in (1, 2))
        weight = uniform((columns,), 3, dtype=torch.float32)
        return lambda: fused(x, residual, weight)

    return Graph(make, 4 * rows * columns * 2, least)


def geglu(work, least):
    rows, columns = work["rows"], work["columns"]

    @torch.compile(dynamic=False)
    def fused(x):
        return F.gelu(x[:, :columns], approximate="tanh") * x[:, columns:]

    def make():
        x = uniform((rows, 2 * columns), 1, QUERY_AMPLITUDE)
        return lambda: (fused(x),)

    return Graph(make, 3 * rows * columns * 2, least)


def copy(work, least):
    shape = (work["rows"], work["columns"])

    def make():
        source, target = (torch.zeros(shape, dtype=torch.float32, device="cuda") for _ in range(2))
        return lambda: (target.copy_(source),)

    return Graph(make, 2 * math.prod(shape) * 4, least)


def matmul(work, least):
    size = work["size"]

    def make():
        a, b = (uniform((size, size), seed) for seed in (1, 2))
        return lambda: (torch.matmul(a, b.t()),)

    return Graph(make, 3 * size * size * 2, least)


def open_work(peer, work, least):
    kind = work["kind"]
    makers = {
        ("prefill", "sdpa_flash"): lambda: prefill(peer, work, least),
        ("prefill", "sdpa_cudnn"): lambda: prefill(peer, work, least),
        ("prefill", "flex_attention"): lambda: prefill(peer, work, least),
        ("decode", "sdpa_flash"): lambda: decode(peer, work, least),
        ("decode", "flex_attention"): lambda: decode(peer, work, least),
        ("int4", "cublas"): lambda: int4(peer, work, least),
        ("int4", "tinygemm"): lambda: int4(peer, work, least),
        ("rms_norm", "compile"): lambda: rms_norm(work, least),
        ("geglu", "compile"): lambda: geglu(work, least),
        ("copy", "copy"): lambda: copy(work, least),
        ("matmul", "cublas"): lambda: matmul(work, least),
    }
    if (kind, peer) not in makers:
        raise Absent(f"does no {kind}")
    with torch.no_grad():
        return makers[(kind, peer)]()


def main():
    if torch is None:
        return serve({}, {name: "PyTorch is not installed" for name in NAMES}, open_work)
    version = f"PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        return serve({}, {name: f"{version} sees no GPU" for name in NAMES}, open_work)
    text = f"{version}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return serve({name: text for name in NAMES}, {}, open_work)


if __name__ == "__main__":
    main()
