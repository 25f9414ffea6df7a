// The tile unit of CPUs with AMX: what both families that use it need. Included once, for that path.

namespace sw {
namespace SW_ISA {

// As LDTILECFG reads it.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// The compiler does not know what the instructions for tiles read.
inline void written() { __asm__ volatile("" ::: "memory"); }

}  // namespace SW_ISA
}  // namespace sw
