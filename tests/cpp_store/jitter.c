/* Loaded before the C library (LD_PRELOAD), puts a thread to sleep now and then where it takes or leaves a lock, as a busy
   machine would. What is wrong only between two locks, for a microsecond, shows within seconds then.

   JITTER_PER_MILLE: of so many of a thousand locks; JITTER_US: for at most so many microseconds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static unsigned per_mille = 150;
static unsigned longest_us = 300;

static unsigned setting(const char* name, unsigned otherwise) {
    const char* const text = getenv(name);
    return text ? (unsigned)atoi(text) : otherwise;
}

__attribute__((constructor)) static void read_settings(void) {
    per_mille = setting("JITTER_PER_MILLE", per_mille);
    longest_us = setting("JITTER_US", longest_us);
}

/* Xorshift (Marsaglia 2003), for each thread. */
static uint64_t chance(void) {
    static __thread uint64_t state;
    if (state == 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        state = ((uint64_t)now.tv_nsec ^ (uint64_t)(uintptr_t)&state) | 1;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void jitter(void) {
    if ((chance() >> 20) % 1000 >= per_mille) return;
    const int error = errno;
    const struct timespec pause = {0, 1000 * (long)((chance() >> 20) % longest_us + 1)};
    nanosleep(&pause, NULL);
    errno = error;
}

#define BEFORE(function, type)                                                        \
    int function(type* lock) {                                                        \
        static int (*original)(type*);                                                \
        if (!original) original = (int (*)(type*))dlsym(RTLD_NEXT, #function);        \
        jitter();                                                                     \
        return original(lock);                                                        \
    }
#define AFTER(function, type)                                                         \
    int function(type* lock) {                                                        \
        static int (*original)(type*);                                                \
        if (!original) original = (int (*)(type*))dlsym(RTLD_NEXT, #function);        \
        const int result = original(lock);                                            \
        jitter();                                                                     \
        return result;                                                                \
    }

BEFORE(pthread_mutex_lock, pthread_mutex_t)
AFTER(pthread_mutex_unlock, pthread_mutex_t)
BEFORE(pthread_rwlock_rdlock, pthread_rwlock_t)
BEFORE(pthread_rwlock_wrlock, pthread_rwlock_t)
AFTER(pthread_rwlock_unlock, pthread_rwlock_t)
