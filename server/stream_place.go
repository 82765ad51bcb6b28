package server

import (
	"crypto/sha256"
	"encoding/binary"

	"kluis/meter"
)

// place is how far a query came, over all its parts: the state of its cursors.
// It holds what the manifest says at the end, so that whoever goes on at another
// gateway gets one that covers everything.
type place struct {
	after  meter.EAN // the last metering point dealt with; zero: none
	counts counts
	parts  uint32            // this one included
	digest [sha256.Size]byte // over the lines of the metering points so far
}

// counts are what came of metering points.
type counts struct {
	given, partly, withheld, failed uint32 // those that were answered
	leftOut                         uint32 // of which nothing is granted, where none were listed
	expected, delivered             uint64 // values
}

// sequence is the number of the last metering point answered.
func (p *place) sequence() int {
	return int(p.counts.given) + int(p.counts.partly) + int(p.counts.withheld) + int(p.counts.failed)
}

// chainTag begins what the first digest of a query's chain is of.
const chainTag = "kluis/manifest/1\n"

func newPlace(query [sha256.Size]byte) place {
	return place{parts: 1, digest: sha256.Sum256(append([]byte(chainTag), query[:]...))}
}

// chain adds the lines of the next metering point to the digest.
func (p *place) chain(lines []byte) {
	sum := sha256.Sum256(lines)
	p.digest = sha256.Sum256(append(p.digest[:], sum[:]...))
}

// encodedPlace is the length of an encoded place: see encode.
const encodedPlace = 8 + 5*4 + 2*8 + 4 + sha256.Size

// encode writes the place: its fields in their order, big endian. It is sealed
// for its request, so what it is of need not be said.
func (p *place) encode() []byte {
	b := make([]byte, 0, encodedPlace)
	b = binary.BigEndian.AppendUint64(b, uint64(p.after.Int64()))
	for _, n := range [...]uint32{p.counts.given, p.counts.partly, p.counts.withheld, p.counts.failed, p.counts.leftOut} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint64(b, p.counts.expected)
	b = binary.BigEndian.AppendUint64(b, p.counts.delivered)
	b = binary.BigEndian.AppendUint32(b, p.parts)
	return append(b, p.digest[:]...)
}

// parsePlace reads what encode wrote.
func parsePlace(b []byte) (place, error) {
	if len(b) != encodedPlace {
		return place{}, errCursor
	}
	var p place
	if n := int64(binary.BigEndian.Uint64(b)); n != 0 {
		var err error
		if p.after, err = meter.EANFromInt64(n); err != nil {
			return place{}, errCursor
		}
	}
	b = b[8:]
	for _, n := range [...]*uint32{&p.counts.given, &p.counts.partly, &p.counts.withheld, &p.counts.failed, &p.counts.leftOut} {
		*n, b = binary.BigEndian.Uint32(b), b[4:]
	}
	p.counts.expected, p.counts.delivered = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	p.parts = binary.BigEndian.Uint32(b[16:])
	copy(p.digest[:], b[20:])
	if p.parts == 0 {
		return place{}, errCursor
	}
	return p, nil
}
