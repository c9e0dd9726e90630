"""Read one layer of a stored model, and nothing else of it.

``python examples/load_single.py``: a server keeps a model of 64 MiB; a client asks for one of its
50 layers, then reads it into memory of its own. ``python -m benchmarks run load_single`` times it
beside files and Redis.
"""

import time

import numpy as np

import cpp_store

LAYERS = {f"dense_{i}": [np.full((512, 655), i, np.float32)] for i in range(50)}


def main() -> None:
    whole = sum(tensor.nbytes for tensors in LAYERS.values() for tensor in tensors)
    with cpp_store.serve(memory="256MiB") as server, cpp_store.connect(server.address) as store:
        store.put("model", LAYERS, score=0.9)

        begin = time.perf_counter()
        layer = store.read("model", ["dense_7"])
        one = time.perf_counter() - begin
        assert set(layer) == {"dense_7"} and (layer["dense_7"][0] == 7).all()

        begin = time.perf_counter()
        store.read("model")
        everything = time.perf_counter() - begin

        mine = np.empty((512, 655), np.float32)  # where a layer of a live network has its weights
        store.read_into("model", {"dense_8": [mine]})
        assert (mine == 8).all()

    print(f"one layer: {1e3 * one:.2f} ms, all {whole / 2**20:.0f} MiB: {1e3 * everything:.1f} ms")


if __name__ == "__main__":
    main()
