/* Every wrong call is refused with its own status and a text that names what is wrong; nothing crashes. */
#include <stdio.h>
#include <string.h>

#include "dtk.h"

static int wrong = 0;

static void expect(int line, dtk_status got, dtk_status want, const char *needle) {
    const char *text = dtk_last_error();
    if (got != want || strstr(text, needle) == NULL) {
        printf("line %d: status %d, wanted %d; `%s` in: %s\n", line, (int)got, (int)want, needle, text);
        wrong = 1;
    }
}
#define EXPECT(call, want, needle) expect(__LINE__, call, want, needle)

enum { SIDE = 32, BATCH = 4, BYTES = BATCH * SIDE * SIDE * 3 };

int main(void) {
    static uint8_t pixels[BYTES];
    static float values[BYTES];
    dtk_distiller *d = NULL;
    dtk_step_result result;
    dtk_map maps[16];
    size_t count = 99;
    if (strcmp(dtk_last_error(), "") != 0) {
        printf("there is an error before the first call\n");
        wrong = 1;
    }
    dtk_close(NULL);

    EXPECT(dtk_open(NULL, &d), DTK_ERROR_USAGE, "options");
    dtk_options options = DTK_OPTIONS_INIT;
    EXPECT(dtk_open(&options, NULL), DTK_ERROR_USAGE, "out");
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "options.recipe");
    options.recipe = "benchmark";
    options.abi_version = 77;
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "77");
    options.abi_version = DTK_ABI_VERSION;
    options.device = "tpu";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "tpu");
    options.device = NULL;
    options.recipe = "no/such/recipe.toml";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "no/such/recipe.toml");
    options.recipe = "\xff\xfe";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "UTF-8");
    options.recipe = "benchmark";
    options.override_count = 1;
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "options.overrides");
    const char *one = NULL;
    options.overrides = &one;
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "options.overrides[i]");
    one = "train.bach=12";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "bach");
    one = "teacher.weights=no/such/teacher.pt";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_FILE, "no/such/teacher.pt");
    one = "train.length='3 epochs'";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "train.length");
    one = "train.accumulate=2";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "train.accumulate");
    one = "train.ema={ decay = 0.99 }";
    EXPECT(dtk_open(&options, &d), DTK_ERROR_USAGE, "train.ema");
    if (d != NULL) {
        printf("a failed dtk_open left a handle\n");
        wrong = 1;
    }

    const char *const small[] = { "data.height=32", "data.width=32", "train.batch=4", "student.regressor.channels=16" };
    options.overrides = small;
    options.override_count = 4;
    if (dtk_open(&options, &d) != DTK_OK) {
        printf("%s\n", dtk_last_error());
        return 1;
    }
    dtk_images images = { pixels, DTK_U8, DTK_HOST, BATCH, SIDE, SIDE, 0 };
    EXPECT(dtk_step(NULL, &images, &result), DTK_ERROR_USAGE, "distiller");
    EXPECT(dtk_step(d, NULL, &result), DTK_ERROR_USAGE, "images");
    EXPECT(dtk_step(d, &images, NULL), DTK_ERROR_USAGE, "result");
    images.data = NULL;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_USAGE, "images.data");
    images.data = pixels;
    images.dtype = DTK_BF16;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_USAGE, "images.dtype");
    images.dtype = DTK_U8;
    images.memory = DTK_DEVICE;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_USAGE, "images.memory");
    images.memory = 5;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_USAGE, "images.memory");
    images.memory = DTK_HOST;
    images.n = BATCH - 1;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_SHAPE, "[4, 32, 32, 3]");
    images.n = 0;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_SHAPE, "none");
    images.n = UINT64_MAX;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_SHAPE, "memory can address");
    images.n = BATCH;
    /* A loss that is no number changes nothing: the step after it is the first. */
    for (int i = 0; i < BYTES; i++) {
        values[i] = 1.0f / 0.0f;
    }
    images.data = values;
    images.dtype = DTK_F32;
    EXPECT(dtk_step(d, &images, &result), DTK_ERROR_NUMERIC, "loss");
    images.data = pixels;
    images.dtype = DTK_U8;
    if (dtk_step(d, &images, &result) != DTK_OK || result.step != 1 || result.level_count != 4) {
        printf("the step after a failed one: %s\n", dtk_last_error());
        wrong = 1;
    }

    EXPECT(dtk_features(d, 7, &images, maps, 16, &count), DTK_ERROR_USAGE, "network");
    EXPECT(dtk_features(d, DTK_STUDENT, &images, maps, 16, NULL), DTK_ERROR_USAGE, "count");
    EXPECT(dtk_features(d, DTK_STUDENT, &images, NULL, 16, &count), DTK_ERROR_USAGE, "maps");
    EXPECT(dtk_features(d, DTK_STUDENT, NULL, maps, 16, &count), DTK_ERROR_USAGE, "images");
    EXPECT(dtk_features(d, DTK_STUDENT, &images, maps, 3, &count), DTK_ERROR_USAGE, "room for 3");
    count = 0;
    if (dtk_features(d, DTK_STUDENT, NULL, NULL, 0, &count) != DTK_OK || count != 4) {
        printf("the student has 4 levels, not %d\n", (int)count);
        wrong = 1;
    }
    images.height = 33;
    EXPECT(dtk_features(d, DTK_TEACHER, &images, maps, 16, &count), DTK_ERROR_SHAPE, "33");
    EXPECT(dtk_save_backbone(d, NULL), DTK_ERROR_USAGE, "path");
    EXPECT(dtk_save_backbone(d, "no/such/folder/b.safetensors"), DTK_ERROR_FILE, "no/such/folder");
    EXPECT(dtk_save_backbone(NULL, "b.safetensors"), DTK_ERROR_USAGE, "distiller");
    dtk_close(d);
    printf("%s\n", wrong ? "wrong" : "OK");
    return wrong;
}
