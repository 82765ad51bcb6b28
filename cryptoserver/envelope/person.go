package envelope

import (
	"fmt"

	"kluis/internal/canonical"
	"kluis/meter"
)

// The plaintext of an identity: name and address of one customer, always
// PersonSize bytes, so that its ciphertext tells nothing of their length. Big
// endian:
//
//	u8   format, 1
//	u8   class, 3 (identity)
//	u32  house number
//	five texts, each a length of u8 and so many places as it may have bytes, the
//	rest zero: postcode, name, street, addition, city
//
// There is one encoding per person. It is sealed as a block is, under a data key
// of the class identity: its AAD has the profile's code of identities for a
// field, the first day of the customer's occupancy, and no resolution.
const (
	personFormat = 1
	personHeader = 1 + 1 + 4

	// PersonSize is the length of every identity's plaintext.
	PersonSize = personHeader + 5 + meter.MaxPostcode + meter.MaxName + meter.MaxStreet + meter.MaxAddition + meter.MaxCity

	addressDomain  = "kluis/address-index"
	addressVersion = 1
)

// AppendPerson appends the plaintext, PersonSize bytes. It refuses what
// meter.Person.Check refuses.
func AppendPerson(dst []byte, p *meter.Person) ([]byte, error) {
	if err := p.Check(); err != nil {
		return dst, err
	}
	a := &p.Address
	n := uint32(a.HouseNumber.Int())
	dst = append(dst, personFormat, byte(meter.Identity), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	for _, t := range [...]struct {
		text string
		max  int
	}{
		{a.Postcode.String(), meter.MaxPostcode}, {p.Name, meter.MaxName}, {a.Street, meter.MaxStreet}, {a.Addition, meter.MaxAddition}, {a.City, meter.MaxCity},
	} {
		dst = append(dst, byte(len(t.text)))
		dst = append(dst, t.text...)
		dst = append(dst, make([]byte, t.max-len(t.text))...)
	}
	return dst, nil
}

// ParsePerson refuses everything AppendPerson would not have written. Its
// errors wrap ErrFormat and hold nothing of the person.
func ParsePerson(b []byte) (meter.Person, error) {
	var p meter.Person
	if len(b) != PersonSize || b[0] != personFormat || b[1] != byte(meter.Identity) {
		return p, fmt.Errorf("%w: not an identity of format %d", ErrFormat, personFormat)
	}
	bad := false
	rest := b[personHeader:]
	text := func(max int) string {
		n, field := int(rest[0]), rest[1:1+max]
		rest = rest[1+max:]
		if n > max {
			bad = true
			return ""
		}
		for _, c := range field[n:] {
			bad = bad || c != 0
		}
		return string(field[:n])
	}
	postcode := text(meter.MaxPostcode)
	p.Name = text(meter.MaxName)
	p.Address.Street = text(meter.MaxStreet)
	p.Address.Addition = text(meter.MaxAddition)
	p.Address.City = text(meter.MaxCity)
	var err1, err2 error
	p.Address.Postcode, err1 = meter.ParsePostcode(postcode)
	p.Address.HouseNumber, err2 = meter.HouseNumberFromInt(int64(b[2])<<24 | int64(b[3])<<16 | int64(b[4])<<8 | int64(b[5]))
	if bad || err1 != nil || err2 != nil || p.Check() != nil {
		return meter.Person{}, fmt.Errorf("%w: not an identity", ErrFormat)
	}
	return p, nil
}

// AddressMessage is what the blind index of an address is a MAC of
// ("kluis/address-index"): postcode and house number, without the addition, so
// that all metering points of a house number are found together.
func AddressMessage(c meter.Postcode, n meter.HouseNumber) []byte {
	w := canonical.New(addressDomain, addressVersion)
	w.String(c.String())
	w.U32(uint32(n.Int()))
	return w.Encoded()
}

// SealedIdentity is a stored identity as fetched, with its data key's record.
type SealedIdentity struct {
	Day        meter.Day // first of the occupancy
	Version    uint32    // 1, 2, ...
	Key        KeyRecord // of which the ID is zero when it is not there any more
	Ciphertext []byte
}

// PlainIdentity is an identity to be sealed. Its metering point and occupancy
// are the key's.
type PlainIdentity struct {
	Key     KeyRecord
	Version uint32
	Person  meter.Person
}

// IdentityContent is what sealing a PlainIdentity gives.
type IdentityContent struct {
	SealedContent
	BlindIndex [32]byte // of the address
}
