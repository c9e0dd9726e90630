"""Train a network from the weights of a similar one that the store finds by itself.

``python examples/transfer_learn.py``: a network is trained and stored; then its mutations are, each
from the layers that it shares with the best match. This is what a search does with every candidate.
"""

import numpy as np

import cpp_store
from transfer_nas.applications import resolve
from transfer_nas.job import Job
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import StoreTransfer


def main() -> None:
    application = resolve("digits")
    space = application.space("dense_skip")
    rng = np.random.default_rng(3)

    with cpp_store.embedded() as store:
        transfer = StoreTransfer(application.namespace, store)
        trainer = TransferTrainer(application, space, transfer, epochs=3)

        parent = Job(id=0, architecture=space.sample(rng), seed=0)
        evaluation = trainer.evaluate(parent)
        print(f"parent: accuracy {evaluation.objective:.3f}")

        for id in range(1, 4):
            child = Job(
                id=id, architecture=space.mutate(parent.architecture, rng), parent=0, seed=id
            )
            evaluation = trainer.evaluate(child)
            measures = evaluation.measures
            print(
                f"child {id}: accuracy {evaluation.objective:.3f}, "
                f"{measures['layers_transferred']} of {measures['layers']} layers from model "
                f"{measures.get('ancestor', '-')}, {measures['bytes_stored']:,} bytes stored of "
                f"{measures['bytes_whole_copy']:,}"
            )
            assert evaluation.done


if __name__ == "__main__":
    main()
