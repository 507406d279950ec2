"""Virtual training steps: a query's gradient, carried backwards through steps that training would take.

A step of training moves the weights by ``-lr P m``, where ``m`` averages the gradients of its batches, and every
gradient depends on the weights by the batch's Hessian. Reversed, the query's gradient, the *adjoint*, goes through

    u <- beta u + (1 - beta) lr P adjoint,    adjoint <- adjoint - G u

with the Gauss-Newton matrix ``G`` of a batch in the place of its Hessian, with which adjoints could grow without
bounds. The sum of ``u`` over the steps is the query's *direction*: its product with a sample's gradient says how much
the query's loss would rise, had training gone on from here for so many steps without that sample. It is a Neumann
series that is stopped early and preconditioned by the optimizer; there is no damping.

Steps that were recorded (:mod:`lightning_attr.trajectory`) are gone back through in the same way, each at its own
weights, rates and batch; with the Hessian in the place of ``G`` it is the derivative of the training as it was.

Shapes: Q queries, P numbers of all selected weights, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_attr.gradients import plain_attention, with_weights
from lightning_attr.models import Inputs, Model

Weights = Mapping[str, Tensor]
Outputs = Callable[[Weights], Tensor]
"""What of a model is linearised: a function of some of its weights."""


def step_back(
    adjoint: Tensor,
    update: Tensor,
    direction: Tensor,
    precondition: Callable[[Tensor], Tensor],
    products: Callable[[Tensor], Tensor],
    beta: float,
    clipped: float = 1.0,
    kept: float = 1.0,
) -> None:
    """Go back through one step, in place; see the head of this module.

    Args:
        adjoint: Of every query, [Q, P].
        update: Its average ``u``, [Q, P]; zero before the first step.
        direction: The sum of the steps' ``u``, [Q, P]; zero before the first step.
        precondition: Multiplies by ``lr P``, [Q, P] to [Q, P].
        products: Multiplies by ``G``, [Q, P] to [Q, P].
        beta: Share of the old average in the new one: Adam's first beta.
        clipped: What clipping leaves of the batch's gradient, taken as a constant.
        kept: What weight decay leaves of the weights.
    """
    update.mul_(beta).add_(precondition(adjoint), alpha=1 - beta)
    direction.add_(update, alpha=clipped)
    adjoint.mul_(kept).sub_(products(update), alpha=clipped)


def scaled_predictions(model: Model, inputs: Inputs, samples: int) -> Outputs:
    """Return the predictions for a batch as a function of weights, so scaled that their squares add up to its loss.

    Where the targets are zero, that is: of the others only the first derivative differs. The loss is training's, the
    mean over ``samples``, of which the batch may be a part.

    Args:
        model: The model.
        inputs: Of B samples.
        samples: Of how many samples the loss is the mean.
    """
    noisy, _ = model.process.noised(inputs.latent, inputs.noise, inputs.timesteps)
    times = model.process.times(inputs.timesteps)
    counts = model.process.weighted(noisy.new_ones(len(noisy)), inputs.timesteps, model.weighting) / samples

    def outputs(weights: Weights) -> Tensor:
        prediction = model.over(with_weights(model.network, weights)).predict(noisy, times, inputs.conditions)
        return prediction.flatten(1) * (counts / prediction[0].numel()).sqrt()[:, None]

    return outputs


def gauss_newton(outputs: Outputs, weights: Weights, vectors: Weights, chunk: int | None = None) -> dict[str, Tensor]:
    """Return ``2 J^T J`` times vectors, ``J`` being the derivative of outputs at the weights: [Q, *shape] by name.

    It is the Hessian of the sum of the outputs' squared errors, but for the term that has those errors in it. One pass
    in forward mode and one in reverse mode serve a chunk of vectors at once.

    Args:
        outputs: See :func:`scaled_predictions`.
        weights: Where to linearise, by name.
        vectors: [Q, *shape] by name.
        chunk: How many vectors go together, which bounds the memory; None is all.
    """

    def product(vector: Weights) -> dict[str, Tensor]:
        change = torch.func.jvp(outputs, (weights,), (vector,))[1]
        result: dict[str, Tensor] = pull(2 * change)[0]
        return result

    with plain_attention():
        pull = torch.func.vjp(outputs, weights)[1]
        result: dict[str, Tensor] = torch.func.vmap(product, chunk_size=chunk)(vectors)
    return result


def hessian(loss: Outputs, weights: Weights, vectors: Weights, chunk: int | None = None) -> dict[str, Tensor]:
    """Return the Hessian of a loss times vectors: [Q, *shape] by name.

    Args:
        loss: Of a batch, as :func:`batch_loss` makes it.
        weights: Where, by name.
        vectors: [Q, *shape] by name.
        chunk: How many vectors go together, which bounds the memory; None is all.
    """

    def product(vector: Weights) -> dict[str, Tensor]:
        result: dict[str, Tensor] = torch.func.jvp(torch.func.grad(loss), (weights,), (vector,))[1]
        return result

    with plain_attention():
        result: dict[str, Tensor] = torch.func.vmap(product, chunk_size=chunk)(vectors)
    return result


def held_by_backward(outputs: Outputs, weights: Weights, network: nn.Module) -> int:
    """Return how many bytes the backward pass of outputs holds besides the weights, selected ones and a network's.

    The changes of all these are about what one vector of :func:`gauss_newton` takes.
    """
    own = {weight.untyped_storage().data_ptr() for weight in (*weights.values(), *network.parameters())}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    asked = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad(), plain_attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs(asked)
    return sum(held.values())


def batch_loss(model: Model, inputs: Inputs, samples: int, region: Tensor | None = None) -> Outputs:
    """Return training's loss as a function of weights.

    Args:
        model: The model.
        inputs: A batch, or a part of it.
        samples: Of how many samples or draws the loss is the mean.
        region: How much each place of the latent counts, [H, W]; None is all alike.
    """

    def loss(weights: Weights) -> Tensor:
        return model.over(with_weights(model.network, weights)).losses(*inputs, region).sum() / samples

    return loss


def loss_gradient(loss: Outputs, weights: Weights) -> dict[str, Tensor]:
    """Return the gradient by some weights of a loss as :func:`batch_loss` makes it, by name."""
    asked = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(asked), list(asked.values()), materialize_grads=True)
    return dict(zip(asked, gradients, strict=True))
