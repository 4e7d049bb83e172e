/* What libpq itself says: reads texts that end with NUL, and writes for each a line "refused", or a line "KEY HEX" for each
 * value that it has, and then a line ".". The library is named by the argument. Needs no header of libpq's. */

#include <dlfcn.h>
#include <stdio.h>

typedef struct {
    char *keyword, *envvar, *compiled, *val, *label, *dispchar;
    int dispsize;
} PQconninfoOption;

int main(int argc, char **argv) {
    void *libpq = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!libpq) {
        fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "name the library");
        return 1;
    }
    PQconninfoOption *(*parse)(const char *, char **) =
        (PQconninfoOption * (*)(const char *, char **)) dlsym(libpq, "PQconninfoParse");
    void (*release)(PQconninfoOption *) = (void (*)(PQconninfoOption *))dlsym(libpq, "PQconninfoFree");
    static char text[65536];
    size_t length = 0;
    for (int byte; (byte = getchar()) != EOF;) {
        if (length == sizeof text)
            return 2;
        text[length++] = (char)byte;
        if (byte)
            continue;
        length = 0;
        PQconninfoOption *options = parse(text, NULL);
        if (!options)
            puts("refused");
        for (PQconninfoOption *option = options; option && option->keyword; option++) {
            if (!option->val)
                continue;
            printf("%s ", option->keyword);
            for (const unsigned char *value = (unsigned char *)option->val; *value; value++)
                printf("%02x", *value);
            puts("");
        }
        puts(".");
        release(options);
    }
    return 0;
}
