/* Shifts what a program takes for the time, loaded before the C library: the time of day by $CLOCK_AHEAD_S seconds, the
 * time that passes by a minute for each byte of the file $CLOCK_PASSED. */

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *ahead = getenv("CLOCK_AHEAD_S");
    const char *passed = getenv("CLOCK_PASSED");
    struct stat file;
    if (clock == CLOCK_REALTIME && ahead)
        now->tv_sec += atol(ahead);
    if (clock == CLOCK_MONOTONIC && passed && stat(passed, &file) == 0)
        now->tv_sec += 60 * file.st_size;
    return result;
}
