"""What surrounds a step: GradScaler, torch.compile, gradient release, states on the host."""

import copy
import unittest

import support

import torch

import lowbit.torch as lt


def pair(dtype=torch.float32, **options):
    net = support.model(dtype=dtype)
    return net, lt.AdamW4bit(net.named_parameters(), lr=1e-2, **options)


@support.needs(2, 3, "there is no GradScaler of the CPU")
class TestGradScaler(unittest.TestCase):
    def test_the_gradients_are_unscaled_in_the_step(self):
        a, left = pair()
        b, right = pair()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 96, generator=generator)
            for net, optimizer in ((a, left), (b, right)):
                optimizer.zero_grad()
                loss = net(x).pow(2).mean()
                if optimizer is left:
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    loss.backward()
                    optimizer.step()
        # Powers of two: not a bit differs.
        self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))
        self.assertFalse(hasattr(left, "found_inf"))

    def test_an_overflow_leaves_everything_and_is_not_counted(self):
        net, optimizer = pair()
        support.train(net, optimizer, 2)
        before = support.snapshot(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer.zero_grad()
        scaler.scale(net(torch.full((8, 96), float("inf"))).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        self.assertEqual(scaler.get_scale(), 512.0)
        self.assertTrue(support.same(support.snapshot(optimizer), before))
        self.assertEqual(optimizer.state[net[0].weight]["step"].item(), 2)

    def test_after_unscale_the_step_does_not_unscale_again(self):
        ends = []
        for unscale in (False, True):
            net, optimizer = pair()
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            x = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
            scaler.scale(net(x).pow(2).mean()).backward()
            if unscale:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
            scaler.step(optimizer)
            ends.append(support.snapshot(optimizer))
        self.assertTrue(support.same(*ends))


@support.needs(2, 4, "there are no operators in Python")
class TestCompile(unittest.TestCase):
    def test_the_whole_step_is_one_graph_with_the_bits_of_eager(self):
        import torch._dynamo.testing

        for backend in ("aot_eager", "inductor"):
            with self.subTest(backend=backend):
                torch._dynamo.reset()
                a, left = pair()
                b, right = pair()
                counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
                step = torch.compile(left.step, fullgraph=True, backend=counter)
                for t in range(6):
                    for optimizer, take in ((left, step), (right, right.step)):
                        generator = torch.Generator().manual_seed(t)
                        for group in optimizer.param_groups:
                            group["lr"] = 0.01 / (1 + t)
                            for p in group["params"]:
                                p.grad = torch.randn(p.shape, generator=generator)
                        take()
                    if t == 2:
                        compiled = counter.frame_count
                self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))
                self.assertEqual(counter.frame_count, compiled, "a new lr compiled again")

    def test_the_operator_is_well_formed(self):
        net, optimizer = pair()
        params = [p.detach() for p in net.parameters()]
        grads = [torch.randn_like(p) for p in params]
        arguments = (params, grads, list(range(len(params))), optimizer._number)
        torch.library.opcheck(
            torch.ops.lowbit.step_.default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )


@support.needs(2, 1, "there is no hook behind an accumulated gradient")
class TestRelease(unittest.TestCase):
    def test_the_bits_are_those_of_ordinary_steps(self):
        a, left = pair(weights="plain")
        b, right = pair(weights="plain")
        support.train(a, left, 5)
        alive = []
        for p in b.parameters():
            p.register_post_accumulate_grad_hook(
                lambda _: alive.append(sum(q.grad is not None for q in b.parameters()))
            )
        with lt.release(right):
            support.train(b, right, 5)
        self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))
        self.assertEqual(max(alive), 1)
        support.train(a, left, 2, begin=5)
        support.train(b, right, 2, begin=5)
        self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))

    def test_the_state_may_be_loaded_meanwhile(self):
        a, left = pair()
        b, right = pair()
        with lt.release(right):
            support.train(a, left, 3)
            b.load_state_dict(a.state_dict())
            right.load_state_dict(copy.deepcopy(left.state_dict()))
            right.param_groups[0]["lr"] = left.param_groups[0]["lr"] = 0.003
            support.train(a, left, 2, begin=3)
            support.train(b, right, 2, begin=3)
        self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))

    def test_what_needs_all_gradients_is_refused(self):
        _, optimizer = pair(nonfinite="skip_step")
        with self.assertRaisesRegex(ValueError, "skip_step"):
            lt.release(optimizer)


class TestOffload(unittest.TestCase):
    """On a machine without a GPU the device is the CPU; copies and buffers are as with one."""

    def test_the_bits_are_those_of_ordinary_steps(self):
        for dtype, options in ((torch.float32, {}), (torch.bfloat16, {"weights": "master"})):
            a, left = pair(dtype, **options)
            b, right = pair(dtype, offload=True, **options)
            support.train(a, left, 5)
            support.train(b, right, 5)
            self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))
            loaded, other = pair(dtype, offload=True, **options)
            loaded.load_state_dict(b.state_dict())
            other.load_state_dict(copy.deepcopy(right.state_dict()))
            support.train(a, left, 2, begin=5)
            support.train(loaded, other, 2, begin=5)
            self.assertTrue(support.same(support.snapshot(left), support.snapshot(other)))

    def test_buffers_stay(self):
        net, optimizer = pair(offload=True)
        support.train(net, optimizer, 1)
        (buffers,) = optimizer._stepper._buffers.values()
        addresses = [buffer.data_ptr() for buffer in buffers]
        parameters = {p.data_ptr() for p in net.parameters()}
        self.assertFalse(parameters & set(addresses))
        support.train(net, optimizer, 2)
        (buffers,) = optimizer._stepper._buffers.values()
        self.assertEqual([buffer.data_ptr() for buffer in buffers], addresses)


if __name__ == "__main__":
    unittest.main()
