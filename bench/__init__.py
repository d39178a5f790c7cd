"""Measurements beside what people use today; the rows lie in bench/results, the tables in docs/performance.md."""

# `ltat bench` runs them in this order.
BENCHES = {
    "startup": "Start-up: `import ltat` beside `import torch`, and `ltat --help`.",
    "pgd_step": "One PGD step.",
    "balanced_kd": "Balanced softmax and distillation, forward and backward.",
    "gather_augment": "A batch of a loader: picked, cropped, mirrored, scaled.",
    "relu_grad_add": "The backward pass of a ReLU that two read.",
    "affine_relu": "Batch norm in evaluation mode with its ReLU.",
    "loader": "An epoch of batches from every loader.",
    "attack": "A whole attack on ResNet-18, beside torchattacks and foolbox.",
    "attack_step": "One attack step on ResNet-18, beside its bare convolutions.",
    "train_step": "An AT-BSL training step, attack and update, and its peak memory.",
    "end_to_end": "An epoch of training, batches included.",
    "distributed": "Two ranks beside one process, ways to average gradients, and what is sent.",
    "scaling": "How time and memory grow with images, classes, pixels and batch.",
}
