"""JAX's attention by cuDNN. Timed by the host's clock around whole batches of runs: JAX gives no events to others."""
import math
import os
import time

from protocol import Absent, mix, serve, sets_for

# JAX would take three quarters of the GPU's memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
NAME = "jax_cudnn"
QUERY_AMPLITUDE = 4

try:
    import jax
    import jax.numpy as jnp
    import numpy
except ImportError:
    jax = None


def uniform(shape, seed, amplitude=1):
    # On the host: JAX takes no Python integer beyond int32. numpy's uint32 wraps around as `mix` masks it.
    index = numpy.arange(math.prod(shape), dtype=numpy.uint32)
    value = (mix(index, seed) >> 8).astype(numpy.float32) / numpy.float32(2**23) - numpy.float32(1)
    return jnp.asarray(amplitude * value).astype(jnp.bfloat16).reshape(shape)


class Prefill:
    def __init__(self, work, least):
        tokens, heads, kv_heads, dim = work["tokens"], work["queryHeads"], work["kvHeads"], work["headDim"]
        if work["softcap"]:
            raise Absent("dot_product_attention has no soft cap")
        window = (work["window"] - 1, 0) if work["window"] else None

        def attend(q, k, v):
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=True, local_window_size=window, implementation="cudnn"
            )

        self.units = sets_for(4 * tokens * heads * dim * 2, least)
        self.inputs = [
            (
                uniform((1, tokens, heads, dim), 1, QUERY_AMPLITUDE),
                uniform((1, tokens, kv_heads, dim), 2),
                uniform((1, tokens, kv_heads, dim), 3),
            )
            for _ in range(self.units)
        ]
        self.all = jax.jit(lambda inputs: [attend(*each) for each in inputs])
        try:
            self.outputs = jax.block_until_ready(self.all(self.inputs))
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise Absent(f"cuDNN refuses: {error}"[:300]) from error

    def rows(self, rows):
        first = self.outputs[0].reshape(-1, self.outputs[0].shape[-1])
        return first[jnp.array(rows)].astype(jnp.float32).tolist()

    def run(self, runs):
        begin = time.perf_counter()
        for _ in range(runs):
            self.outputs = self.all(self.inputs)
        jax.block_until_ready(self.outputs)
        return 1e3 * (time.perf_counter() - begin)

    def close(self):
        self.inputs = self.outputs = None


def open_work(_peer, work, least):
    if work["kind"] != "prefill":
        raise Absent(f"does no {work['kind']}")
    return Prefill(work, least)


def main():
    if jax is None:
        return serve({}, {NAME: "JAX is not installed"}, open_work)
    if jax.default_backend() != "gpu":
        return serve({}, {NAME: f"JAX {jax.__version__} sees no GPU"}, open_work)
    return serve({NAME: f"JAX {jax.__version__}, host clock"}, {}, open_work)


if __name__ == "__main__":
    main()
