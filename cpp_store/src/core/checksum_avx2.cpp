#include "core/checksum_kernel.hpp"

namespace cpp_store {

const ChecksumKernel* avx2_kernel() noexcept {
#if defined(__AVX2__)
    static constexpr ChecksumKernel kernel{&kernel_checksum, &kernel_copy, &kernel_add,
                                           &kernel_sum};
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") ? &kernel : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace cpp_store
