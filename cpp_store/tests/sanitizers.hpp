// Which sanitizer the tests are built with; GCC and Clang say it in different words.
#pragma once

#if defined(__has_feature)
#define CPP_STORE_HAS(sanitizer) __has_feature(sanitizer)
#else
#define CPP_STORE_HAS(sanitizer) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || CPP_STORE_HAS(address_sanitizer)
#define CPP_STORE_ASAN 1
#else
#define CPP_STORE_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__) || CPP_STORE_HAS(thread_sanitizer)
#define CPP_STORE_TSAN 1
#else
#define CPP_STORE_TSAN 0
#endif

namespace cpp_store {

// Then everything takes ten times as long.
constexpr bool sanitized = CPP_STORE_ASAN || CPP_STORE_TSAN;

}  // namespace cpp_store
