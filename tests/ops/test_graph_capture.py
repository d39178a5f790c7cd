"""The operators inside a CUDA graph: no synchronisation, no host read, the same bits at every replay."""

import pytest
import torch

from ltat.ops import affine_relu, balanced_kd, gather_augment, pgd_step, relu_grad_add

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def attack(model, start, x, target):
    x_adv = start.clone()
    for _ in range(10):
        x_adv.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(x_adv), target, reduction="sum")
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = pgd_step(x_adv, grad, x, eps=8 / 255, step=2 / 255)
    return x_adv


def warmed_up(function, *arguments):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)


def test_ten_captured_steps_replay_to_the_eager_result():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = model.cuda().requires_grad_(False)
    x, target = torch.rand(32, 3, 8, 8, device="cuda"), torch.randint(10, (32,), device="cuda")
    start = (x + 0.001 * torch.randn_like(x)).detach()
    warmed_up(attack, model, start, x, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attack(model, start, x, target)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x.copy_(torch.rand_like(x))
        start.copy_(x)
        graph.replay()
        assert torch.equal(captured, attack(model, start, x, target))


def test_captured_loss_replays_to_the_eager_result():
    student = torch.randn(64, 10, device="cuda", requires_grad=True)
    teacher, prior = torch.randn(64, 10, device="cuda"), torch.zeros(10, device="cuda")
    target = torch.randint(10, (64,), device="cuda")

    def step():
        loss = balanced_kd(student, target, prior, form="kl_adv", teacher_adv=teacher).loss
        return loss.detach(), torch.autograd.grad(loss, [student])[0]

    warmed_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    teacher.copy_(torch.randn_like(teacher))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_captured_batch_replays_with_the_draws_of_the_moment():
    images = torch.randint(256, (50, 32, 32, 3), dtype=torch.uint8, device="cuda")
    positions, mirrored = torch.randint(50, (64,), device="cuda"), torch.rand(64, device="cuda") < 0.5
    shift = torch.randint(-4, 5, (64, 2), device="cuda")

    def batch():
        return gather_augment(images, positions, shift=shift, mirrored=mirrored)

    warmed_up(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = batch()
    positions.copy_(positions.flip(0))
    shift.neg_()
    mirrored.logical_not_()
    graph.replay()
    assert torch.equal(captured, batch())


def test_captured_relu_replays_forward_and_backward_to_the_eager_bits():
    x = torch.randn(8, 64, 16, 16, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    grad, skip, (scale, shift) = torch.randn_like(x), torch.randn_like(x), torch.randn(2, 64, device="cuda")

    def there_and_back():
        return relu_grad_add(affine_relu(x, scale, shift), grad, skip, scale=scale, outside=skip)

    warmed_up(there_and_back)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = there_and_back()
    x.copy_(torch.randn_like(x))
    grad.neg_()
    graph.replay()
    assert torch.equal(captured, there_and_back())


def test_replays_and_calls_beside_one_another_count_their_blocks_apart():
    # The last block of the loss is the one that counts itself last: two kernels at once must not share the count.
    student, prior = torch.randn(4096, 10, device="cuda"), torch.zeros(10, device="cuda")
    target = torch.randint(10, (4096,), device="cuda")

    def step():
        return balanced_kd(student, target, prior).loss

    expected = step()
    warmed_up(step)
    graphs, losses = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            losses.append(step())
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for _ in range(50):
        for graph, stream in zip(graphs, streams, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in streams:
            with torch.cuda.stream(stream):
                losses.append(step())
    torch.cuda.synchronize()
    assert all(torch.equal(loss, expected) for loss in losses)
