#include "../kernels/gather_augment.h"

#include "common.h"

namespace ltat {
namespace {

void check_images(const Tensor& images) {
  check_dtype(images, ScalarType::Byte, "images");
  STD_TORCH_CHECK(images.dim() == 4 && images.is_contiguous(), "images must be contiguous [N, H, W, ch]");
}

// The tensor made contiguous, or nothing if none is given.
OptionalTensor checked(const OptionalTensor& given, const Tensor& images, ScalarType dtype,
                       std::initializer_list<int64_t> shape, const char* name) {
  if (!given) return std::nullopt;
  check_dtype(*given, dtype, name);
  check_same_device(*given, images, name);
  STD_TORCH_CHECK(given->dim() == static_cast<int64_t>(shape.size()), name, " has the wrong shape");
  int64_t dim = 0;
  for (int64_t size : shape) STD_TORCH_CHECK(given->size(dim++) == size, name, " has the wrong shape");
  return dense(*given);
}

void check_moves(const GatherAugmentArgs& args) {
  for (int64_t sample = 0; sample < args.batch; ++sample) {
    STD_TORCH_CHECK(move_of(args, sample).legal, "image ", sample,
                    " has a position outside the set or reflects beyond its far side");
  }
}

void launch(const GatherAugmentArgs& args, [[maybe_unused]] const Tensor& on) {
#ifdef LTAT_WITH_CUDA
  if (on.is_cuda()) return enqueue(gather_augment_cuda, args, on);
#endif
  check_moves(args);
  gather_augment_cpu(args, torch_threads);
}

// The batch as [B, H, W, ch]; the caller permutes it to channels_last.
Tensor gather_augment(const Tensor& images, OptionalTensor positions, OptionalTensor shift,
                      OptionalTensor mirrored, bool reflect, bool bfloat16) {
  check_images(images);
  const int64_t batch = positions ? positions->size(0) : images.size(0);
  const OptionalTensor positions_dense = checked(positions, images, ScalarType::Long, {batch}, "positions");
  const OptionalTensor shift_dense = checked(shift, images, ScalarType::Long, {batch, 2}, "shift");
  const OptionalTensor mirrored_dense = checked(mirrored, images, ScalarType::Bool, {batch}, "mirrored");
  Tensor out = empty_on(images, {batch, images.size(1), images.size(2), images.size(3)},
                        bfloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32());
  if (out.numel() == 0) return out;

  GatherAugmentArgs args{};
  args.out = out.data_ptr();
  args.out_dtype = bfloat16 ? DType::kBFloat16 : DType::kFloat32;
  args.images = data<uint8_t>(images);
  args.positions = positions_dense ? data<int64_t>(*positions_dense) : nullptr;
  args.shift = shift_dense ? data<int64_t>(*shift_dense) : nullptr;
  args.mirrored = mirrored_dense ? data<uint8_t>(*mirrored_dense) : nullptr;
  args.reflect = reflect;
  args.count = images.size(0);
  args.batch = batch;
  args.height = images.size(1);
  args.width = images.size(2);
  args.channels = images.size(3);
  launch(args, images);
  return out;
}

}  // namespace
}  // namespace ltat

STABLE_TORCH_LIBRARY_FRAGMENT(ltat, m) {
  m.def(
      "gather_augment(Tensor images, Tensor? positions, Tensor? shift, Tensor? mirrored, bool reflect, "
      "bool bfloat16) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ltat, CPU, m) { m.impl("gather_augment", TORCH_BOX(&ltat::gather_augment)); }

#ifdef LTAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltat, CUDA, m) { m.impl("gather_augment", TORCH_BOX(&ltat::gather_augment)); }
#endif
