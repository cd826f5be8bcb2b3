/*
 * Features and steps on a program's own CUDA context, stream and memory. The driver is loaded by name, so that no CUDA header
 * or library is needed to build this: ./program DRIVER OUT.
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "dtk.h"

typedef int (*init_fn)(unsigned);
typedef int (*create_fn)(void **, unsigned, int);
typedef int (*pointer_fn)(void *);
typedef int (*get_fn)(void **);
typedef int (*stream_fn)(void **, unsigned);
typedef int (*alloc_fn)(uint64_t *, size_t);
typedef int (*free_fn)(uint64_t);
typedef int (*upload_fn)(uint64_t, const void *, size_t);
typedef int (*download_fn)(void *, uint64_t, size_t, void *);

static void *driver;

/* A function of the driver's. POSIX lets a void pointer be copied so; C does not let it be cast. */
#define LOAD(type, name) \
    type name; \
    do { \
        void *found = dlsym(driver, #name); \
        if (found == NULL) { printf("no %s\n", #name); return 1; } \
        memcpy(&name, &found, sizeof found); \
    } while (0)
#define CU(call) \
    do { int code = (call); if (code != 0) { printf("%s: %d\n", #call, code); return 1; } } while (0)
#define DTK(call) \
    do { if ((call) != DTK_OK) { printf("%s: %s\n", #call, dtk_last_error()); return 1; } } while (0)

enum { SIDE = 32, BATCH = 4, STEPS = 3, BYTES = BATCH * SIDE * SIDE * 3, FIRST_MAP = 1 << 17 };

int main(int argc, char **argv) {
    static uint8_t pixels[BYTES], again[BYTES];
    static float map[FIRST_MAP];
    /* What is said before a crash is said. */
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc < 3 || (driver = dlopen(argv[1], RTLD_NOW)) == NULL) {
        printf("no driver\n");
        return 1;
    }
    LOAD(init_fn, cuInit);
    LOAD(create_fn, cuCtxCreate_v2);
    LOAD(get_fn, cuCtxGetCurrent);
    LOAD(pointer_fn, cuCtxDestroy_v2);
    LOAD(stream_fn, cuStreamCreate);
    LOAD(pointer_fn, cuStreamSynchronize);
    LOAD(pointer_fn, cuStreamDestroy_v2);
    LOAD(alloc_fn, cuMemAlloc_v2);
    LOAD(free_fn, cuMemFree_v2);
    LOAD(upload_fn, cuMemcpyHtoD_v2);
    LOAD(download_fn, cuMemcpyDtoHAsync_v2);
    void *context = NULL, *stream = NULL, *now = NULL;
    uint64_t images_at = 0;
    CU(cuInit(0));
    CU(cuCtxCreate_v2(&context, 0, 0));
    CU(cuStreamCreate(&stream, 1));
    CU(cuMemAlloc_v2(&images_at, BYTES));
    for (int i = 0; i < BYTES; i++) {
        pixels[i] = (uint8_t)(127.5 * (1.0 + sin(0.01 * i) * cos(0.37 * i)));
    }
    CU(cuMemcpyHtoD_v2(images_at, pixels, BYTES));

    const char *const overrides[] = {
        "data.height=32", "data.width=32", "train.batch=4", "train.length=3", "train.precision=f32",
        "teacher.model={ model_channels = 32, learn_sigma = true, num_res_blocks = 1, channel_mult = [1.0, 1.0, 1.0, 1.0], "
        "attention_ds = [8], num_head_channels = 32, use_scale_shift_norm = true, resblock_updown = true }",
        "student.backbone={ name = \"resnet_small\", channels = [8, 8, 16, 16], stem_width = 8, layers = [1, 1, 1, 1] }",
        "student.regressor={ kind = \"fpn_ppm\", channels = 16 }", "lr.schedule={ name = \"constant\" }",
    };
    dtk_options options = DTK_OPTIONS_INIT;
    options.recipe = "benchmark";
    options.overrides = overrides;
    options.override_count = sizeof overrides / sizeof overrides[0];
    dtk_distiller *host = NULL, *d = NULL;
    DTK(dtk_open(&options, &host));
    options.cuda_context = context;
    if (dtk_open(&options, &d) != DTK_ERROR_USAGE || strstr(dtk_last_error(), "cuda_stream") == NULL) {
        printf("a context without a stream: %s\n", dtk_last_error());
        return 1;
    }
    options.cuda_stream = stream;
    DTK(dtk_open(&options, &d));

    dtk_images here = { pixels, DTK_U8, DTK_HOST, BATCH, SIDE, SIDE, 0 };
    dtk_images there = { (const void *)(uintptr_t)images_at, DTK_U8, DTK_DEVICE, BATCH, SIDE, SIDE, 0 };
    for (int network = DTK_TEACHER; network <= DTK_STUDENT; network++) {
        dtk_map on_host[16], on_device[16];
        size_t count = 0, same = 0;
        DTK(dtk_features(host, network, &here, on_host, 16, &same));
        DTK(dtk_features(d, network, &there, on_device, 16, &count));
        if (count != same) {
            printf("%d and %d maps\n", (int)count, (int)same);
            return 1;
        }
        for (size_t i = 0; i < count; i++) {
            const dtk_map *m = &on_device[i];
            size_t elements = (size_t)(m->shape[0] * m->strides[0]);
            if (m->memory != DTK_DEVICE || m->dtype != DTK_F32 || elements > FIRST_MAP ||
                memcmp(m->shape, on_host[i].shape, sizeof m->shape) != 0) {
                printf("map %d is not what it should be\n", (int)i);
                return 1;
            }
            /* The program's own copy, on its own stream, of memory that dtk has filled. */
            CU(cuMemcpyDtoHAsync_v2(map, (uint64_t)(uintptr_t)m->data, elements * sizeof(float), stream));
            CU(cuStreamSynchronize(stream));
            const float *want = on_host[i].data;
            double off = 0.0, size = 0.0;
            for (size_t k = 0; k < elements; k++) {
                off += (map[k] - want[k]) * (map[k] - want[k]);
                size += want[k] * want[k];
            }
            if (!(off <= 1e-6 * size)) {
                printf("network %d map %d: off by %g of %g\n", network, (int)i, off, size);
                return 1;
            }
        }
    }
    for (int i = 0; i < STEPS; i++) {
        dtk_step_result a, b;
        DTK(dtk_step(host, &here, &a));
        DTK(dtk_step(d, i == 1 ? &here : &there, &b));
        printf("step %d: %.6f on the host, %.6f on the device\n", (int)b.step, a.loss, b.loss);
        if (!(fabs(a.loss - b.loss) <= 2e-3 * fabs(a.loss)) || a.level_count != b.level_count ||
            !(fabs(a.grad_norm - b.grad_norm) <= 2e-2 * a.grad_norm) || a.lr != b.lr) {
            printf("gradient norms %g and %g\n", a.grad_norm, b.grad_norm);
            return 1;
        }
    }
    dtk_step_result result;
    /* As many floats as the images have values; what they are does not matter. */
    here.data = map;
    here.dtype = DTK_F32;
    if (dtk_step(d, &here, &result) != DTK_ERROR_USAGE || strstr(dtk_last_error(), "DTK_U8") == NULL) {
        printf("f32 on a device: %s\n", dtk_last_error());
        return 1;
    }
    DTK(dtk_save_backbone(d, argv[2]));
    dtk_close(d);
    dtk_close(host);

    /* Context, stream and memory are the program's as before. */
    CU(cuCtxGetCurrent(&now));
    CU(cuMemcpyDtoHAsync_v2(again, images_at, BYTES, stream));
    CU(cuStreamSynchronize(stream));
    if (now != context || memcmp(pixels, again, BYTES) != 0) {
        printf("something of the program's has changed\n");
        return 1;
    }
    CU(cuMemFree_v2(images_at));
    CU(cuStreamDestroy_v2(stream));
    CU(cuCtxDestroy_v2(context));
    printf("OK\n");
    return 0;
}
