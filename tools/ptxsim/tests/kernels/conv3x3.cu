// 3x3 convolution in f32, stride 1, padding 1, NCHW, weights [out][in][3][3], with bias.
// A block of 256 threads makes 8 x 16 pixels of 64 output channels; a thread 4 pixels of a row times 8 channels. Eight
// input channels at a time are in shared memory with their border and their weights, the output channel innermost.

#define TILE_H 8
#define TILE_W 16
#define IN_H (TILE_H + 2)
#define IN_W (TILE_W + 2)
#define IN_LD 20
#define OC 64
#define IC 8

extern "C" __global__ void __launch_bounds__(256)
conv3x3(const float *__restrict__ x, const float *__restrict__ w, const float *__restrict__ bias,
        float *__restrict__ y, int H, int W, int in_channels, int out_channels) {
    __shared__ __align__(16) float xs[IC][IN_H][IN_LD];
    __shared__ __align__(16) float ws[IC * 9][OC];

    const int t = threadIdx.x;
    const int tiles_x = (W + TILE_W - 1) / TILE_W;
    const int x0 = (blockIdx.x % tiles_x) * TILE_W, y0 = (blockIdx.x / tiles_x) * TILE_H;
    const int oc0 = blockIdx.y * OC;
    const float *image = x + (size_t)blockIdx.z * in_channels * H * W;

    // Lanes of a warp differ in pixel, so that weights are read as broadcasts.
    const int px = (t & 3) * 4, py = (t >> 2) & 7, oc = (t >> 5) * 8;
    float acc[8][4];
#pragma unroll
    for (int o = 0; o < 8; o++) {
        const float b = oc0 + oc + o < out_channels ? bias[oc0 + oc + o] : 0.0f;
#pragma unroll
        for (int p = 0; p < 4; p++) acc[o][p] = b;
    }

    for (int ic0 = 0; ic0 < in_channels; ic0 += IC) {
        for (int i = t; i < IC * IN_H * IN_W; i += 256) {
            const int c = i / (IN_H * IN_W), rest = i % (IN_H * IN_W);
            const int row = rest / IN_W, col = rest % IN_W;
            const int gy = y0 + row - 1, gx = x0 + col - 1;
            const bool inside = ic0 + c < in_channels && gy >= 0 && gy < H && gx >= 0 && gx < W;
            xs[c][row][col] = inside ? image[((size_t)(ic0 + c) * H + gy) * W + gx] : 0.0f;
        }
        for (int i = t; i < IC * 9 * OC; i += 256) {
            const int o = i % OC, k = i / OC;
            const bool inside = oc0 + o < out_channels && ic0 + k / 9 < in_channels;
            ws[k][o] = inside ? w[((size_t)(oc0 + o) * in_channels + ic0) * 9 + k] : 0.0f;
        }
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < IC; c++) {
#pragma unroll
            for (int ky = 0; ky < 3; ky++) {
                float in[6];
                const float4 lo = *reinterpret_cast<const float4 *>(&xs[c][py + ky][px]);
                const float2 hi = *reinterpret_cast<const float2 *>(&xs[c][py + ky][px + 4]);
                in[0] = lo.x, in[1] = lo.y, in[2] = lo.z, in[3] = lo.w, in[4] = hi.x, in[5] = hi.y;
#pragma unroll
                for (int kx = 0; kx < 3; kx++) {
                    const float *row = &ws[c * 9 + ky * 3 + kx][oc];
                    const float4 w0 = *reinterpret_cast<const float4 *>(row);
                    const float4 w1 = *reinterpret_cast<const float4 *>(row + 4);
                    const float wv[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
#pragma unroll
                    for (int o = 0; o < 8; o++)
#pragma unroll
                        for (int p = 0; p < 4; p++) acc[o][p] += wv[o] * in[p + kx];
                }
            }
        }
        __syncthreads();
    }

    const int gy = y0 + py;
    if (gy >= H) return;
#pragma unroll
    for (int o = 0; o < 8; o++) {
        const int channel = oc0 + oc + o;
        if (channel >= out_channels) break;
        float *row = y + (((size_t)blockIdx.z * out_channels + channel) * H + gy) * W + x0 + px;
        if ((W & 3) == 0 && x0 + px + 3 < W) {
            *reinterpret_cast<float4 *>(row) = make_float4(acc[o][0], acc[o][1], acc[o][2], acc[o][3]);
        } else {
#pragma unroll
            for (int p = 0; p < 4; p++)
                if (x0 + px + p < W) row[p] = acc[o][p];
        }
    }
}
