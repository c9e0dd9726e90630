#include "exhaustion/failing_new.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace cpp_store::failing_new {
namespace {

std::atomic<bool> armed = false;
std::atomic<std::uint64_t> wanted = 0;  // the number of the first to fail
std::atomic<bool> fails_on = false;     // the rest, too
std::atomic<bool> counts_here = true;
std::atomic<std::uint64_t> counted = 0;
std::atomic<std::uint64_t> failed = 0;
thread_local bool is_armer = false;

bool fails() noexcept {
    if (!armed || is_armer != counts_here) return false;
    const std::uint64_t number = ++counted;
    if (number != wanted && !(fails_on && number > wanted)) return false;
    ++failed;
    return true;
}

void* take(std::size_t size, std::size_t alignment) noexcept {
    if (fails()) return nullptr;
    if (size == 0) size = 1;
    if (alignment <= alignof(std::max_align_t)) return std::malloc(size);
    return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void* take_or_throw(std::size_t size, std::size_t alignment) {
    void* const memory = take(size, alignment);
    if (!memory) throw std::bad_alloc();
    return memory;
}

}  // namespace

void arm(Where where, Which which, std::uint64_t number) noexcept {
    is_armer = true;
    wanted = number;
    fails_on = which == Which::rest;
    counts_here = where == Where::here;
    counted = 0;
    failed = 0;
    armed = true;
}

std::uint64_t disarm() noexcept {
    armed = false;
    return failed;
}

}  // namespace cpp_store::failing_new

using cpp_store::failing_new::take;
using cpp_store::failing_new::take_or_throw;

// All forms that the standard has: a sanitizer takes those that are left out for another allocator.
void* operator new(std::size_t size) {
    return take_or_throw(size, 1);
}
void* operator new[](std::size_t size) {
    return take_or_throw(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
    return take_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
    return take_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
    return take(size, 1);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
    return take(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
    return take(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
    return take(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete[](void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
    std::free(memory);
}
