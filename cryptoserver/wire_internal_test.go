package cryptoserver

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"kluis/cryptoserver/cryptopb"
)

// FuzzParseBlocks: whatever a client sends, its columns are refused, or give
// every block of every unit its own piece of the ciphertexts, and no other.
func FuzzParseBlocks(f *testing.F) {
	good, err := proto.Marshal(&cryptopb.OpenRequest{
		Units: []*cryptopb.OpenUnit{{Blocks: 2}, {}, {Blocks: 1}},
		Blocks: &cryptopb.SealedBlocks{
			Field: []uint32{1, 2, 3}, Day: []int32{4, 5, 6}, Resolution: []uint32{1, 2, 3}, Version: []uint32{1, 1, 1},
			Key: []uint32{0, 1, 0}, Size: []uint32{3, 0, 2}, Ciphertexts: []byte("aaacc"),
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(cryptopb.OpenRequest)
		if proto.Unmarshal(b, req) != nil {
			return
		}
		c, err := parseBlocks(req, make([]int, 3, 8))
		if err != nil {
			return
		}
		n := 0
		for _, u := range req.Units {
			n += int(u.Blocks)
		}
		if n != c.len() {
			t.Fatalf("%d blocks, and the units have %d", c.len(), n)
		}
		var all []byte
		for i := range c.len() {
			// Each column has the block, or this panics.
			_, _, _, _, _ = c.in.Field[i], c.in.Day[i], c.in.Resolution[i], c.in.Version[i], c.in.Key[i]
			one := c.ciphertext(i)
			if len(one) != int(c.in.Size[i]) || cap(one) != len(one) {
				t.Fatalf("block %d has %d bytes of %d", i, len(one), cap(one))
			}
			all = append(all, one...)
		}
		if !bytes.Equal(all, c.in.GetCiphertexts()) {
			t.Fatal("ciphertexts of no block")
		}
	})
}
