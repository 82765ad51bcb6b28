package envelope

import (
	"kluis/internal/canonical"
	"kluis/meter"
)

// KeyRecord is a data key as stored. Its MAC (HMAC under the record MAC key)
// is over Message.
type KeyRecord struct {
	ID        [16]byte
	EAN       meter.EAN
	Class     meter.Class
	Month     meter.Month
	Occupancy meter.Day // first day of the occupancy; 0 when none is known
	Epoch     uint32
	Wrapped   []byte
	MAC       [32]byte
}

const (
	keyRecordDomain  = "kluis/key-record"
	keyRecordVersion = 1

	// WrappedKeySize is the length of an AES-256 key under AES key wrap
	// (RFC 3394).
	WrappedKeySize = 40
)

// Message is the canonical form under the MAC ("kluis/key-record").
func (k KeyRecord) Message() []byte {
	w := canonical.New(keyRecordDomain, keyRecordVersion)
	w.Fixed(k.ID[:])
	w.I64(k.EAN.Int64())
	w.U8(uint8(k.Class))
	w.I32(int32(k.Month))
	w.I32(int32(k.Occupancy))
	w.U32(k.Epoch)
	w.Bytes(k.Wrapped)
	return w.Encoded()
}
