package envelope

import (
	"encoding/binary"

	"kluis/internal/canonical"
	"kluis/meter"
)

// BlockID is what a ciphertext is bound to: its AAD ("kluis/block-aad").
type BlockID struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Resolution meter.Resolution
	Version    uint32 // of the block
	KeyID      [16]byte
}

const (
	aadDomain  = "kluis/block-aad"
	aadVersion = 1

	// AADSize is the length of every AAD.
	AADSize = 4 + len(aadDomain) + 1 + 8 + 2 + 4 + 1 + 4 + 16
)

// aadHead is the part all AADs share; a block's AAD is built once per read.
var aadHead = func() []byte {
	w := canonical.New(aadDomain, aadVersion)
	return w.Encoded()
}()

// AppendAAD appends the canonical AAD, AADSize bytes. The one who opens
// rebuilds it from what was authorised and never takes it from the caller.
func (b BlockID) AppendAAD(dst []byte) []byte {
	dst = append(dst, aadHead...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.EAN.Int64()))
	dst = binary.BigEndian.AppendUint16(dst, uint16(b.Field))
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.Day))
	dst = append(dst, byte(b.Resolution))
	dst = binary.BigEndian.AppendUint32(dst, b.Version)
	return append(dst, b.KeyID[:]...)
}

const (
	contentDomain  = "kluis/content"
	contentVersion = 1
)

// ContentMessage is the canonical form under content_mac ("kluis/content"):
// EAN, field, day, resolution and plaintext. Block version and data key are
// left out, so that equal content has an equal MAC.
func ContentMessage(id BlockID, plaintext []byte) []byte {
	return AppendContentMessage(make([]byte, 0, ContentMessageSize(len(plaintext))), id, plaintext)
}

// ContentMessageSize is the length of the content message of a plaintext.
func ContentMessageSize(plaintext int) int {
	return 4 + len(contentDomain) + 1 + 8 + 2 + 4 + 1 + 4 + plaintext
}

// AppendContentMessage is ContentMessage on the caller's buffer, which holds
// plaintext afterwards and is the caller's to clear.
func AppendContentMessage(dst []byte, id BlockID, plaintext []byte) []byte {
	w := canonical.Append(dst, contentDomain, contentVersion)
	w.I64(id.EAN.Int64())
	w.U16(uint16(id.Field))
	w.I32(int32(id.Day))
	w.U8(uint8(id.Resolution))
	w.Bytes(plaintext)
	return w.Encoded()
}
