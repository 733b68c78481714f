// The smallest trainer in C++, as bindings/cpp/README.md shows it.

// [page]
#include <lowbit.hpp>

int main() {
  std::vector<float> w(512 * 256, 1), dw(w.size());
  auto plan = lowbit::plan::make(lowbit::context::cpu(), lowbit::spec::preset("adamw4"),
                                 {{"w", {512, 256}}});
  auto optimizer = lowbit::stepper::make(std::move(plan));  // allocates states and scratch
  optimizer.bind({lowbit::buffer_of(w)}, {lowbit::buffer_of(dw)});
  lowbit::hyper hyper;
  for (int step = 0; step < 100; step++) {
    dw = w;  // the gradient of |w|^2 / 2
    hyper.lr = 1e-2f;
    optimizer.step(hyper);
  }
  optimizer.save("w.safetensors");
// [/page]
  if (w[0] > 0.25f || optimizer.plan().state_bytes() > 150000) {
    return 1;
  }
}
