// C = alpha A B + beta C in f32, row-major: A is M x K, B is K x N.
// A block of 256 threads makes 128 x 128 of C, a thread 8 x 8, in two halves 64 apart so that the reads of a warp from
// shared memory are broadcasts and whole lines. Tiles of 8 along K are double buffered: the next one travels from global
// memory to registers while this one is multiplied.

#define BM 128
#define BN 128
#define BK 8
// A is kept transposed; four floats of padding put the two halves of a warp's stores on different banks.
#define LDA_S (BM + 4)

// Four floats of a row, zero beyond `columns`; one 16-byte load where the row's alignment allows it.
static __device__ __forceinline__ float4 load4(const float *row, int column, int columns, bool inside, bool aligned) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (!inside) return v;
    if (aligned && column + 3 < columns) return *reinterpret_cast<const float4 *>(row + column);
    if (column < columns) v.x = row[column];
    if (column + 1 < columns) v.y = row[column + 1];
    if (column + 2 < columns) v.z = row[column + 2];
    if (column + 3 < columns) v.w = row[column + 3];
    return v;
}

extern "C" __global__ void __launch_bounds__(256)
sgemm(int M, int N, int K, float alpha, const float *__restrict__ A, const float *__restrict__ B, float beta,
      float *__restrict__ C) {
    __shared__ __align__(16) float As[2][BK][LDA_S];
    __shared__ __align__(16) float Bs[2][BK][BN];

    const int t = threadIdx.x;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int a_row = t >> 1, a_col = (t & 1) * 4;
    const int b_row = t >> 5, b_col = (t & 31) * 4;
    const bool a_aligned = (K & 3) == 0, b_aligned = (N & 3) == 0;
    const bool a_inside = m0 + a_row < M;
    const float *a_ptr = A + (size_t)(a_inside ? m0 + a_row : 0) * K;

    const int tx = t & 15, ty = t >> 4;
    float acc[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) acc[i][j] = 0.0f;

    float4 a = load4(a_ptr, a_col, K, a_inside, a_aligned);
    float4 b = load4(B + (size_t)b_row * N, n0 + b_col, N, b_row < K, b_aligned);
    int stage = 0;
    for (int k0 = 0; k0 < K; k0 += BK) {
        As[stage][a_col + 0][a_row] = a.x;
        As[stage][a_col + 1][a_row] = a.y;
        As[stage][a_col + 2][a_row] = a.z;
        As[stage][a_col + 3][a_row] = a.w;
        *reinterpret_cast<float4 *>(&Bs[stage][b_row][b_col]) = b;
        // One barrier a tile: whoever stores to a buffer again has passed the barrier after everybody read it.
        __syncthreads();

        const int next = k0 + BK;
        if (next < K) {
            a = load4(a_ptr, next + a_col, K, a_inside, a_aligned);
            b = load4(B + (size_t)(next + b_row) * N, n0 + b_col, N, next + b_row < K, b_aligned);
        }
#pragma unroll
        for (int k = 0; k < BK; k++) {
            const float4 a0 = *reinterpret_cast<const float4 *>(&As[stage][k][ty * 4]);
            const float4 a1 = *reinterpret_cast<const float4 *>(&As[stage][k][64 + ty * 4]);
            const float4 b0 = *reinterpret_cast<const float4 *>(&Bs[stage][k][tx * 4]);
            const float4 b1 = *reinterpret_cast<const float4 *>(&Bs[stage][k][64 + tx * 4]);
            const float av[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
            const float bv[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) acc[i][j] += av[i] * bv[j];
        }
        stage ^= 1;
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int m = m0 + (i >> 2) * 64 + ty * 4 + (i & 3);
        if (m >= M) continue;
        float *row = C + (size_t)m * N;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int n = n0 + h * 64 + tx * 4;
            const float *v = &acc[i][h * 4];
            if (b_aligned && n + 3 < N) {
                float4 out = make_float4(alpha * v[0], alpha * v[1], alpha * v[2], alpha * v[3]);
                if (beta != 0.0f) {
                    const float4 old = *reinterpret_cast<const float4 *>(row + n);
                    out.x += beta * old.x;
                    out.y += beta * old.y;
                    out.z += beta * old.z;
                    out.w += beta * old.w;
                }
                *reinterpret_cast<float4 *>(row + n) = out;
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (n + j < N) row[n + j] = alpha * v[j] + (beta != 0.0f ? beta * row[n + j] : 0.0f);
            }
        }
    }
}
