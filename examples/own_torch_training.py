"""Search with a plain PyTorch training loop: the model is a ``torch.nn.Module`` there.

``KERAS_BACKEND=torch python -m transfer_nas.evolve --application examples/own_torch_training.py``
"""

import dataclasses

import torch

from transfer_nas.applications import resolve

METRIC = "sparse_categorical_accuracy"


def fit(model, data, context):
    """Train what is not frozen, batch by batch; the validation rows judge each epoch."""
    weights = [variable.value for variable in model.trainable_variables]
    optimizer = torch.optim.AdamW(weights, lr=context.learning_rate)
    loss_of = torch.nn.NLLLoss()
    device = weights[0].device
    x, y = torch.as_tensor(data.x_train, device=device), torch.as_tensor(data.y_train).to(device)
    shuffle = torch.Generator().manual_seed(context.seed % 2**63)
    judged = {}
    for epoch in range(1, context.epochs + 1):
        for batch in torch.randperm(len(x), generator=shuffle).split(context.batch_size):
            optimizer.zero_grad()
            predicted = model(x[batch], training=True)
            loss_of(torch.log(predicted + 1e-7), y[batch].long()).backward()
            optimizer.step()
        judged = context.validate()  # loss and metrics, with statistics of these weights
        if context.report(epoch, judged):
            break
    return judged


application = dataclasses.replace(
    resolve("breast_cancer"), name="own-torch-training", metric=METRIC, fit=fit, epochs=8
)
