"""Search with a training loop of one's own: batches by hand, patience, checkpoints.

``mpiexec -n 3 python -m transfer_nas.evolve --application examples/own_training.py``; with
``--resume --output_dir RUN`` behind it, each training goes on at its last epoch.
"""

import dataclasses

import keras
import numpy as np

from transfer_nas.applications import resolve

METRIC, PATIENCE = "sparse_categorical_accuracy", 2


def fit(model, data, context):
    """Train until the validation rows are no better for some epochs; keep the best weights."""
    # It comes compiled with the application's loss and metric; the optimizer is ours.
    optimizer = keras.optimizers.AdamW(context.learning_rate)
    model.compile(optimizer, loss=model.loss, metrics=[METRIC])
    rng = np.random.default_rng(context.seed)
    saved = context.directory / "best.weights.h5"
    progress = context.directory / "progress.npy"  # epoch, best accuracy, its epoch
    begin, best, best_epoch = 0, -1.0, 0
    if saved.exists() and progress.exists():  # the search was killed in here, and is resumed
        model.load_weights(saved)
        begin, best, best_epoch = np.load(progress).tolist()

    for epoch in range(int(begin) + 1, context.epochs + 1):
        rows = rng.permutation(len(data.x_train))
        for at in range(0, len(rows), context.batch_size):
            batch = rows[at : at + context.batch_size]
            model.train_on_batch(data.x_train[batch], data.y_train[batch])
        judged = model.evaluate(data.x_valid, data.y_valid, verbose=0, return_dict=True)
        if judged[METRIC] > best:
            best, best_epoch = judged[METRIC], epoch
            model.save_weights(fresh := saved.with_name("new.weights.h5"))
            fresh.replace(saved)  # whole, whenever the search is killed
        np.save(fresh := progress.with_name("new.npy"), [epoch, best, best_epoch])
        fresh.replace(progress)
        stop = context.report(epoch, judged)
        if stop or epoch - best_epoch >= PATIENCE:
            break

    model.load_weights(saved)
    return model.evaluate(data.x_valid, data.y_valid, verbose=0, return_dict=True)


application = dataclasses.replace(
    resolve("breast_cancer"), name="own-training", metric=METRIC, fit=fit, epochs=8
)
