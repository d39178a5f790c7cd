// Host code over NumPy arrays, of no tensor and no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../kernels/isa.h"
#include "../kernels/long_tail.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

Int64Array longtail_counts(int64_t n_max, int64_t num_classes, double ratio, const std::string& kind) {
  if (kind != "exp" && kind != "step")
    throw py::value_error("kind must be 'exp' or 'step', got '" + kind + "'");
  const auto profile = kind == "exp" ? ltat::Profile::kExponential : ltat::Profile::kStep;
  const std::vector<int64_t> counts = ltat::longtail_counts(n_max, num_classes, ratio, profile);
  return Int64Array(static_cast<py::ssize_t>(counts.size()), counts.data());
}

std::pair<Int64Array, Int64Array> group_by_class(const Int64Array& labels, int64_t num_classes) {
  if (labels.ndim() != 1) throw py::value_error("labels must be one-dimensional");
  if (num_classes < 1) throw py::value_error("num_classes must be at least 1");
  Int64Array order(labels.size()), offsets(num_classes + 1);
  ltat::group_by_class(labels.data(), labels.size(), num_classes, order.mutable_data(),
                       offsets.mutable_data());
  return {order, offsets};
}

py::dict build_info() {
  py::dict info;
  info["version"] = LTAT_VERSION;
  info["compiler"] = LTAT_COMPILER;
  info["torch_headers"] = LTAT_TORCH_HEADERS;
  info["torch_target"] = LTAT_TORCH_TARGET;
  info["isa"] = ltat::name_of(ltat::cpu_isa());
#ifdef LTAT_WITH_CUDA
  info["cuda_compiler"] = LTAT_CUDA_COMPILER;
  info["cuda_archs"] = LTAT_CUDA_ARCHS;
#else
  info["cuda_compiler"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Host-side helpers of ltat; every one has a NumPy twin in ltat.";
  m.def("build_info", &build_info,
        "What this build was made with, and the instruction set chosen at run time.");
  m.def("longtail_counts", &longtail_counts, py::arg("n_max"), py::arg("num_classes"), py::arg("ratio"),
        py::arg("kind") = "exp", "Images per class of a long-tailed set, int64 [num_classes].");
  m.def("group_by_class", &group_by_class, py::arg("labels"), py::arg("num_classes"),
        "Positions class by class, (order int64 [N], offsets int64 [num_classes + 1]).");
}
