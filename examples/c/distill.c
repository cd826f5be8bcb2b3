/*
 * Distillation steps and feature maps from C.
 *
 *     cargo build --release -p dtk-capi
 *     cc -std=c99 -Iinclude examples/c/distill.c -Ltarget/release -ldtk_capi -Wl,-rpath,$PWD/target/release -o distill
 *     ./distill                    # on the CPU; ./distill cuda
 *
 * Without arguments everything is made up: coloured gratings for images, a small teacher with random weights.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "dtk.h"

enum { SIDE = 32, BATCH = 4, STEPS = 12, MAPS = 16 };

/* Says what went wrong and ends the program: a library must not do that, a program may. */
static void check(dtk_status status, const char *what) {
    if (status != DTK_OK) {
        fprintf(stderr, "%s failed (%d): %s\n", what, (int)status, dtk_last_error());
        exit(1);
    }
}

/* A batch of gratings. */
static void draw(uint8_t *pixels) {
    size_t at = 0;
    for (int n = 0; n < BATCH; n++) {
        for (int y = 0; y < SIDE; y++) {
            for (int x = 0; x < SIDE; x++) {
                for (int c = 0; c < 3; c++) {
                    double wave = sin(0.4 * (n + 1) * (c == 1 ? x : y) + c);
                    pixels[at++] = (uint8_t)(127.5 * (1.0 + wave));
                }
            }
        }
    }
}

static double mean(const dtk_map *map) {
    /* On a device the program would launch its own kernel on the same stream instead. */
    if (map->memory != DTK_HOST || map->dtype != DTK_F32) {
        return NAN;
    }
    const float *values = map->data;
    uint64_t count = map->shape[0] * map->shape[1] * map->shape[2] * map->shape[3];
    double sum = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        sum += values[i];
    }
    return sum / (double)count;
}

int main(int argc, char **argv) {
    const char *const overrides[] = {
        "data.height=32", "data.width=32", "train.batch=4", "train.length=12",
        /* A small teacher with maps at the strides 8, 4 and 2, and a student that has such levels. */
        "teacher.model={ model_channels = 32, learn_sigma = true, num_res_blocks = 1, channel_mult = [1.0, 1.0, 1.0, 1.0], "
        "attention_ds = [8], num_head_channels = 32, use_scale_shift_norm = true, resblock_updown = true }",
        "student.backbone={ name = \"resnet_small\", channels = [8, 8, 16, 16], stem_width = 8, layers = [1, 1, 1, 1] }",
        "student.regressor={ kind = \"fpn_ppm\", channels = 16 }",
        "lr.peak=3e-3", "lr.schedule.warmup=2",
    };
    static uint8_t pixels[BATCH * SIDE * SIDE * 3];
    draw(pixels);

    dtk_options options = DTK_OPTIONS_INIT;
    options.recipe = "benchmark";
    options.overrides = overrides;
    options.override_count = sizeof overrides / sizeof overrides[0];
    options.device = argc > 1 ? argv[1] : "cpu";
    dtk_distiller *distiller = NULL;
    check(dtk_open(&options, &distiller), "dtk_open");
    printf("dtk %s on %s\n", dtk_version(), options.device);

    dtk_images images = { pixels, DTK_U8, DTK_HOST, BATCH, SIDE, SIDE, 0 };
    dtk_map maps[MAPS];
    size_t count = 0;
    check(dtk_features(distiller, DTK_TEACHER, &images, maps, MAPS, &count), "dtk_features");
    for (size_t i = 0; i < count; i++) {
        printf("teacher map %d: %dx%dx%d, stride %d, mean %+.4f\n", (int)i, (int)maps[i].shape[1],
               (int)maps[i].shape[2], (int)maps[i].shape[3], (int)maps[i].pixels, mean(&maps[i]));
    }

    float first = 0.0f, last = 0.0f;
    for (int i = 0; i < STEPS; i++) {
        dtk_step_result result;
        check(dtk_step(distiller, &images, &result), "dtk_step");
        first = i == 0 ? result.loss : first;
        last = result.loss;
        printf("step %d: loss %.4f, cosine of the finest level %+.3f, lr %.2e\n", (int)result.step, result.loss,
               result.levels[0].cosine, result.lr);
    }

    const char *path = argc > 2 ? argv[2] : "backbone.safetensors";
    check(dtk_save_backbone(distiller, path), "dtk_save_backbone");
    dtk_close(distiller);
    printf("loss %.4f -> %.4f; wrote %s\n", first, last, path);
    return last < first ? 0 : 1;
}
