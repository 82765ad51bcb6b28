package auditlog

import (
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// TestFrontier: the right edge gives the hashes and roots that tlog gives, with
// all hashes at hand.
func TestFrontier(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var f frontier
		var stored []tlog.Hash
		reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
			for _, i := range indexes {
				out = append(out, stored[i])
			}
			return out, nil
		})
		for i := range rapid.IntRange(0, 200).Draw(t, "leaves") {
			h := tlog.RecordHash([]byte{byte(i), byte(i >> 8)})
			want, err := tlog.StoredHashesForRecordHash(int64(i), h, reader)
			if err != nil {
				t.Fatal(err)
			}
			if got := f.add(h, nil); !slices.Equal(got, want) {
				t.Fatalf("leaf %d: %v, want %v", i, got, want)
			}
			stored = append(stored, want...)
		}
		root, err := tlog.TreeHash(f.size, reader)
		if err != nil || f.root() != root {
			t.Fatalf("root of %d: %v, want %v (%v)", f.size, f.root(), root, err)
		}
		if int64(len(stored)) != tlog.StoredHashCount(f.size) {
			t.Fatal("another number of stored hashes")
		}
	})
}
