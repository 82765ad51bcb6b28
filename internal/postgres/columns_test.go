package postgres

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/uuid"

	"kluis/meter"
)

// columns are n rows, row i with a ciphertext of i bytes.
func columns(n int) blockColumns {
	var c blockColumns
	for i := range n {
		c.field = binary.BigEndian.AppendUint16(c.field, uint16(9-i/4))
		c.day = binary.BigEndian.AppendUint32(c.day, uint32(20000-i))
		c.version = binary.BigEndian.AppendUint32(c.version, uint32(1+i))
		c.resolution = binary.BigEndian.AppendUint16(c.resolution, uint16(i%3))
		id := uuid.UUID{15: byte(i / 3 % 3)}
		c.keyID = append(c.keyID, id[:]...)
		c.size = binary.BigEndian.AppendUint32(c.size, uint32(i))
		c.ciphertext = append(c.ciphertext, bytes.Repeat([]byte{byte(i)}, i)...)
	}
	return c
}

func TestBlockColumns(t *testing.T) {
	t.Parallel()
	const n = 20
	c := columns(n)
	blocks, ids, ok := c.rows()
	if !ok || len(blocks) != n || len(ids) != 3 {
		t.Fatalf("%v, %d blocks, %d keys", ok, len(blocks), len(ids))
	}
	for at, b := range blocks {
		i := n - 1 - at
		if b.Field != meter.FieldCode(9-i/4) || b.Day != meter.Day(20000-i) || b.Version != uint32(1+i) || b.Resolution != meter.Resolution(i%3) ||
			ids[b.Key][15] != byte(i/3%3) || !bytes.Equal(b.Ciphertext, bytes.Repeat([]byte{byte(i)}, i)) || cap(b.Ciphertext) != i {
			t.Errorf("row %d is %+v", i, b)
		}
	}
	// What no table holds is nothing that opens.
	odd := columns(1)
	copy(odd.resolution, []byte{0x80, 1})
	if blocks, _, ok := odd.rows(); !ok || blocks[0].Resolution != 0 {
		t.Errorf("%v, %+v", ok, blocks)
	}
	if blocks, ids, ok := new(blockColumns).rows(); !ok || len(blocks)+len(ids) != 0 {
		t.Error("no rows are some")
	}
	for name, change := range map[string]func(*blockColumns){
		"half a field":      func(c *blockColumns) { c.field = c.field[1:] },
		"a day short":       func(c *blockColumns) { c.day = c.day[4:] },
		"a version more":    func(c *blockColumns) { c.version = append(c.version, 0, 0, 0, 1) },
		"no resolutions":    func(c *blockColumns) { c.resolution = nil },
		"a key short":       func(c *blockColumns) { c.keyID = c.keyID[16:] },
		"no sizes":          func(c *blockColumns) { c.size = nil },
		"a size too large":  func(c *blockColumns) { c.size[0] = 0xff },
		"a ciphertext less": func(c *blockColumns) { c.ciphertext = c.ciphertext[1:] },
		"a byte more":       func(c *blockColumns) { c.ciphertext = append(c.ciphertext, 1) },
	} {
		c := columns(n)
		change(&c)
		if _, _, ok := c.rows(); ok {
			t.Errorf("%s: taken", name)
		}
	}
}
