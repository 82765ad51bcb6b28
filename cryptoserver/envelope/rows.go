package envelope

import "kluis/meter"

// NoKey is the Key of a row whose data key record is not there any more. A
// cryptoserver reports such a block as erased when the key was, else as damaged.
const NoKey = -1

// SealedBlock is a stored block as fetched, beside the key records of its
// metering point.
type SealedBlock struct {
	Field      meter.FieldCode
	Day        meter.Day
	Resolution meter.Resolution
	Version    uint32 // of the block, 1, 2, ...
	Key        int    // index into the key records, or NoKey
	Ciphertext []byte
}

// PlainBlock is a block to be sealed, beside the key records of its metering
// point.
type PlainBlock struct {
	Field   meter.FieldCode
	Version uint32 // of the block, 1, 2, ...
	Key     int    // index into the key records
	Block   meter.Block
}

// SealedContent is what sealing a PlainBlock gives.
type SealedContent struct {
	Ciphertext []byte
	ContentMAC [32]byte
}

// KeySpec says for what a data key is to be made.
type KeySpec struct {
	EAN       meter.EAN
	Class     meter.Class
	Month     meter.Month
	Occupancy meter.Day // first day of the occupancy; 0 when none is known
}
