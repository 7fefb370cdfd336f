"""Sharding: each process holds its part of all roles' weights, by PyTorch's own `fully_shard`."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ppo.lora import POLICY, Adapters, Role
from workbench.errors import UserError
from workbench.models import decoder_layers
from workbench.processes import asked, asked_for_fsdp

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

    from ppo.config import PPOModelSettings
    from ppo.roles import Roles

OTHER = "another file in --accelerate (configs/accelerate/ddp.yaml; without a GPU, cpu.yaml)"


def join(settings: "PPOModelSettings", device: torch.device) -> "DeviceMesh | None":
    """Return the mesh of all processes, or None where nobody asked to shard.

    Accelerate passes over its FSDP settings on a CPU and says nothing, so what was asked for is
    read from the launcher's environment, and done here.

    Args:
        settings: of the policy.
        device: of this process; its kind decides how the processes talk.

    Raises:
        UserError: for a layout that is not sharded, and when there are not as many processes as
            were asked for, or only one.
    """
    if not asked_for_fsdp():
        return None
    if settings.layout == "separate":
        raise UserError(
            "model.layout=separate: FSDP was asked for, and this layout, which trains embeddings "
            f"and heads too, is not sharded; use model.layout=lora or shared_trunk, or {OTHER}"
        )
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != asked():
        raise UserError(
            f"FSDP over {asked()} processes was asked for, and {found} are connected here; start "
            f"them by `rlhf ppo --accelerate FILE --num-processes {asked()}`"
        )
    if found == 1:
        raise UserError(
            "FSDP was asked for, and one process has nobody to share weights with; give "
            f"--num-processes 2 or more, or {OTHER}"
        )
    return init_device_mesh(device.type, (found,))


class Shards:
    """The weights of all roles, split among the processes of a mesh.

    A decoder layer is a group: its parts are gathered when it computes, forward or backward, and
    freed after. What a role has beside its layers (the last norm, the value's head) is a group too;
    embeddings and language-model heads, which are frozen, are gathered where they are read. A
    trained weight's gradient and moments are split as it is: gradients are averaged over processes
    with every micro-batch, and whole ones are kept no longer than a layer's backward pass. Weights
    travel in the type they are kept in, float32 where they are trained, and autocast decides what
    products compute in: the numbers are those of a run that is not sharded.

    With N processes, F frozen weights of b bytes, T trained ones and A of the actor, each process
    holds (b F + 16 T) / N bytes and one gathered group, and b A bytes more while it samples.
    """

    def __init__(self, roles: "Roles", plain: "PreTrainedModel", mesh: "DeviceMesh") -> None:
        """Split the weights of roles in place; parts move to the mesh's device a group at a time.

        Args:
            roles: of layout `lora` or `shared_trunk`, with the same weights in every process.
            plain: the actor's `skeleton`.
            mesh: of all processes.

        Raises:
            UserError: when a weight is not split afterwards.
        """
        self.roles, self.plain, self.mesh = roles, plain, mesh
        trained, actor = roles.trained, roles.actor
        own = [trained.policy, trained.value, roles.reference, roles.reward]
        bodies = [body for body in own if body is not None and not isinstance(body, Role)]
        self._move()
        self._split_ends(actor, actor.get_output_embeddings())
        for model in (actor, *bodies):
            for layer in _layers(model):
                self._group(layer)
        if roles.reward in bodies and not roles.reward_embedded:
            self._split_ends(roles.reward)
        for body in bodies:
            self._group(body)
        # The actor is looked at in parts, whose forward is not its own: a group for each module.
        for module in list(actor.modules()):
            if any(not is_split(weight) for weight in module.parameters(recurse=False)):
                self._group(module)
        self._group(trained)
        self._check()

    def _group(self, module: nn.Module) -> None:
        """Make a group of the weights in a module that are in none yet."""
        from torch.distributed.fsdp import fully_shard

        split = {weight for weight in module.parameters() if is_split(weight)}
        fully_shard(module, mesh=self.mesh, reshard_after_forward=True, ignored_params=split)

    def _split_ends(self, model: Any, head: nn.Module | None = None) -> None:
        """Split an embedding, which is gathered in its forward pass, and a head.

        Not by `fully_shard`: the two may be one weight, and run apart from each other.
        """
        from torch.distributed.tensor import Shard, distribute_tensor

        embedding = model.get_input_embeddings()
        done: dict[nn.Parameter, nn.Parameter] = {}
        for module in (embedding, head):
            for name, weight in [] if module is None else list(module.named_parameters()):
                if weight not in done:
                    # Every process has read the same weights: nothing is sent.
                    part = distribute_tensor(
                        weight.detach().to(self.roles.device),
                        self.mesh,
                        [Shard(0)],
                        src_data_rank=None,
                    )
                    done[weight] = nn.Parameter(part, requires_grad=False)
                setattr(module, name, done[weight])
        kept = embedding.weight

        def lend(module: Any, _: Any) -> None:
            module.weight = nn.Parameter(whole(kept), requires_grad=False)

        def take_back(module: Any, *_: Any) -> None:
            module.weight = kept

        embedding.register_forward_pre_hook(lend)
        embedding.register_forward_hook(take_back, always_call=True)

    def _move(self) -> None:
        """Move what is no weight (angles of rotary positions), and the reward's head, of d numbers.

        `fully_shard` moves weights.
        """
        roles = self.roles
        for model in (roles.actor, roles.reward, roles.reference):
            for module in [] if model is None else model.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(roles.device))
        if roles.reward_head is not None:
            roles.reward_head.to(roles.device)

    def _check(self) -> None:
        roles = self.roles
        models = {
            "actor": roles.actor,
            "trained": roles.trained,
            "reference": roles.reference,
            "reward": roles.reward,
        }
        for role, model in models.items():
            for name, weight in [] if model is None else model.named_parameters():
                if not is_split(weight):
                    raise UserError(
                        f"{roles.settings.name}: FSDP was asked for, and {role}.{name} stayed "
                        f"whole; name {OTHER}"
                    )

    @contextmanager
    def actor(self) -> Iterator["PreTrainedModel"]:
        """Yield the policy as a plain model that is whole in every process, adapters merged.

        Every process must enter. The model lives in the block alone.
        """
        roles = self.roles
        with nullcontext() if roles.adapters is None else roles.adapters.merged(POLICY):
            parts = Adapters.plain_state(roles.actor)
            # A copy in which each weight is replaced, wherever it occurs.
            weights = {
                id(empty): nn.Parameter(whole(parts[name]), requires_grad=False)
                for name, empty in self.plain.named_parameters()
            }
        del parts
        yield copy.deepcopy(self.plain, weights).to(roles.device)

    def collect(self, *, keep: bool) -> None:
        """Make actor and trained weights plain again, on the CPU, to be saved; training has ended.

        Every process must call it.

        Args:
            keep: whether this process wants them; in the others nothing changes.
        """
        found: dict[nn.Parameter, nn.Parameter] = {}
        for root in (self.roles.actor, self.roles.trained):
            for module in root.modules():
                for name, weight in list(module.named_parameters(recurse=False)):
                    if is_split(weight) and weight not in found:
                        full = whole(weight.detach())
                        found[weight] = nn.Parameter(full.cpu(), False) if keep else weight
                    setattr(module, name, found.get(weight, weight))


def _layers(model: Any) -> list[nn.Module]:
    try:
        return list(decoder_layers(model))
    except AttributeError:
        raise UserError(
            f"{model.config.model_type} models keep their layers where they are not looked for, "
            f"and FSDP was asked for, which gathers a layer at a time; name {OTHER}"
        ) from None


def check_done(roles: "Roles") -> None:
    """Check that roles are split if that was asked for, before anything is learned.

    Raises:
        UserError: when they are not.
    """
    if asked_for_fsdp() and roles.shards is None:
        raise UserError(
            "FSDP was asked for, and these models were built without it (`rlhf ppo` splits them, "
            f"PPOTrainer does not); start by `rlhf ppo`, or name {OTHER}"
        )


def skeleton(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a copy of a model that has no weights, only their shapes."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, empty)


def is_split(weight: torch.Tensor) -> bool:
    """Return whether a tensor is this process's part of one, a `DTensor`."""
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def whole(weight: torch.Tensor) -> torch.Tensor:
    """Return a tensor gathered from all processes, which must all call it; a plain one as it is."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def gather(value: Any, *, keep: bool) -> Any:
    """Return nested mappings and lists with the tensors in them whole and on the CPU.

    Every process must call it where some are split.

    Args:
        value: what a checkpoint holds.
        keep: whether this process wants the tensors; None stands for them in the others.
    """
    if isinstance(value, torch.Tensor):
        full = whole(value)
        return full.cpu() if keep else None
    if isinstance(value, dict):
        return {key: gather(inner, keep=keep) for key, inner in value.items()}
    if isinstance(value, list):
        return [gather(inner, keep=keep) for inner in value]
    return value


def split_like(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor, split as a weight is, or it all if that is."""
    if not is_split(weight):
        return value
    from torch.distributed.tensor import distribute_tensor

    part: Any = weight
    return distribute_tensor(
        value.to(weight.device), part.device_mesh, part.placements, src_data_rank=None
    )


def split_moments(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's gathered state with each moment split as its parameter is."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        index: {
            name: split_like(value, parameters[index])
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in kept.items()
        }
        for index, kept in state["state"].items()
    }
    return {**state, "state": moments}
