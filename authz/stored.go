package authz

import (
	"fmt"

	"kluis/meter"
)

// StoredFile is the newest row of a metering point's legal files. Sealed is nil
// when there is none. What a row says counts only if it agrees with what is
// sealed.
type StoredFile struct {
	Version  uint64 // of the row
	Sealed   []byte
	Previous []byte // sealed, of the version before; nil when there is none
}

// StoredFile verifies the newest legal file of a metering point, that it is the
// version that its row says, and that it was made from the version before. None
// stored is nil. Every error wraps ErrSeal, and names no metering point.
//
// Whoever has a step sealed may keep it back, and have more sealed on top; what
// became of the metering point meanwhile is not in it. Stored later, such a
// version would take the place of the one that says so.
func (k *SealKeys) StoredFile(f StoredFile, ean meter.EAN) (*LegalFile, error) {
	file, err := k.ListedFile(f, ean)
	if err != nil || file == nil || file.version == 1 {
		return file, err
	}
	if f.Previous == nil {
		return nil, fmt.Errorf("%w: version %d is missing: put it back, or remove what comes after it", ErrSeal, file.version-1)
	}
	// What a verified file names as its previous is genuine, whoever signed it.
	if digest, err := PayloadDigest(f.Previous); err != nil || digest != file.previous {
		return nil, fmt.Errorf("%w: version %d was not made from the version %d that is there", ErrSeal, file.version, file.version-1)
	}
	return file, nil
}

// ListedFile does the same where the version before was not fetched, and so
// without looking at it: good for a list, which opens nothing.
func (k *SealKeys) ListedFile(f StoredFile, ean meter.EAN) (*LegalFile, error) {
	if f.Sealed == nil {
		return nil, nil
	}
	file, err := k.LegalFile(f.Sealed)
	switch {
	case err != nil:
		return nil, err
	case file.ean != ean:
		return nil, fmt.Errorf("%w: it is of another metering point", ErrSeal)
	case file.version != f.Version:
		return nil, fmt.Errorf("%w: the newest row says version %d, and it is version %d", ErrSeal, f.Version, file.version)
	}
	return file, nil
}
