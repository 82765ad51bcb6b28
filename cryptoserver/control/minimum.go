package control

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// MaxMinimums bounds the minimums of one entry; more take several.
const MaxMinimums = 4096

// FileMinimum says which version of a metering point's legal file is the first
// that counts, and when it was sealed. The number alone would not do: whoever
// has a step sealed and does not store it has a version of a higher number that
// knows nothing of what was taken away later. It was sealed before that.
type FileMinimum struct {
	EAN      meter.EAN
	Version  uint64    // from 1
	SealedAt time.Time // UTC, microseconds
}

// SupplierMinimum says which version of a supplier's record is the first that
// counts.
type SupplierMinimum struct {
	GLN     meter.GLN
	Version uint64 // from 1
}

func (e Entry) minimum() bool { return e.Kind == MinimumFiles || e.Kind == MinimumSuppliers }

func (e Entry) encodeMinimums() ([]byte, error) {
	if e.Epoch != 0 || e.Month != 0 || e.Cause != 0 || !e.EAN.IsZero() || len(e.Keys) > 0 ||
		len(e.Files) > 0 && e.Kind != MinimumFiles || len(e.Suppliers) > 0 && e.Kind != MinimumSuppliers {
		return nil, fmt.Errorf("%w: a field that its kind does not have", ErrEntry)
	}
	w := canonical.New(entryDomain, entryMinimums)
	w.Time(e.At)
	w.U8(uint8(e.Kind))
	w.Count(len(e.Files) + len(e.Suppliers))
	for _, m := range e.Files {
		w.I64(m.EAN.Int64())
		w.U64(m.Version)
		w.Time(m.SealedAt)
	}
	for _, m := range e.Suppliers {
		w.I64(m.GLN.Int64())
		w.U64(m.Version)
	}
	b := w.Encoded()
	if _, err := ParseEntry(b); err != nil {
		return nil, err
	}
	return b, nil
}

// parseMinimums reads what follows the version of an entry.
func parseMinimums(r *canonical.Reader) (Entry, error) {
	e := Entry{At: r.Time(), Kind: Kind(r.U8())}
	n := r.Count(MaxMinimums)
	last := int64(0)
	for i := 0; i < n && r.Err() == nil; i++ {
		subject, version := r.I64(), r.U64()
		if r.Err() != nil {
			break
		}
		if subject <= last {
			r.Refuse("the minimums are not ascending")
		}
		last = subject
		if version == 0 || int64(version) < 0 {
			r.Refuse("version out of range")
		}
		var err error
		if e.Kind == MinimumFiles {
			m := FileMinimum{Version: version, SealedAt: r.Time()}
			if r.Err() == nil && m.SealedAt.IsZero() {
				r.Refuse("no time of sealing")
			}
			m.EAN, err = meter.EANFromInt64(subject)
			e.Files = append(e.Files, m)
		} else {
			m := SupplierMinimum{Version: version}
			m.GLN, err = meter.GLNFromInt64(subject)
			e.Suppliers = append(e.Suppliers, m)
		}
		if err != nil {
			r.Refuse("no metering point or supplier")
		}
	}
	err := r.Close()
	switch {
	case err != nil:
	case e.At.IsZero():
		err = errors.New("no time")
	case !e.minimum():
		err = errors.New("unknown kind")
	case n == 0:
		err = errors.New("no minimum")
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return e, nil
}

// minimums are the first versions that count. What a later entry raises takes
// no more memory, so there are as many as subjects.
type minimums map[int64]uint64

func (m minimums) raise(subject int64, version uint64) { m[subject] = max(m[subject], version) }

// fileMinimums are those of legal files.
type fileMinimums map[int64]fileMinimum

type fileMinimum struct {
	version  uint64
	sealedAt int64 // microseconds
}

func (m fileMinimums) raise(e FileMinimum) {
	was := m[e.EAN.Int64()]
	m[e.EAN.Int64()] = fileMinimum{max(was.version, e.Version), max(was.sealedAt, e.SealedAt.UnixMicro())}
}

func (m fileMinimums) raises(e FileMinimum) bool {
	was := m[e.EAN.Int64()]
	return e.Version > was.version || e.SealedAt.UnixMicro() > was.sealedAt
}

// raises says whether an entry says anything new.
func (f *Feed) raises(e Entry) bool {
	return slices.ContainsFunc(e.Files, f.files.raises) ||
		slices.ContainsFunc(e.Suppliers, func(m SupplierMinimum) bool { return m.Version > f.suppliers[m.GLN.Int64()] })
}

// FileMinimum is the first version of a metering point's legal file that
// counts; 0: the feed says nothing of it.
func (f *Feed) FileMinimum(ean meter.EAN) uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.files[ean.Int64()].version
}

// CountsFile says whether a version of a metering point's legal file, sealed at
// the time, still counts.
func (f *Feed) CountsFile(ean meter.EAN, version uint64, sealedAt time.Time) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	least := f.files[ean.Int64()]
	return version >= least.version && (least.version == 0 || sealedAt.UnixMicro() >= least.sealedAt)
}

// SupplierMinimum is the first version of a supplier's record that counts; 0:
// the feed says nothing of it.
func (f *Feed) SupplierMinimum(gln meter.GLN) uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.suppliers[gln.Int64()]
}

// Minimums is how many metering points and suppliers have a first version that
// counts.
func (f *Feed) Minimums() (files, suppliers int) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.files), len(f.suppliers)
}

// FileMinimums lists the minimums of all legal files, by EAN.
func (f *Feed) FileMinimums() []FileMinimum {
	f.mu.RLock()
	out := make([]FileMinimum, 0, len(f.files))
	for subject, m := range f.files {
		ean, err := meter.EANFromInt64(subject)
		if err == nil { // always: it was parsed
			out = append(out, FileMinimum{ean, m.version, time.UnixMicro(m.sealedAt).UTC()})
		}
	}
	f.mu.RUnlock()
	slices.SortFunc(out, func(a, b FileMinimum) int { return cmp.Compare(a.EAN.Int64(), b.EAN.Int64()) })
	return out
}

// SupplierMinimums lists the minimums of all supplier records, by GLN.
func (f *Feed) SupplierMinimums() []SupplierMinimum {
	f.mu.RLock()
	out := make([]SupplierMinimum, 0, len(f.suppliers))
	for subject, version := range f.suppliers {
		gln, err := meter.GLNFromInt64(subject)
		if err == nil { // always: it was parsed
			out = append(out, SupplierMinimum{gln, version})
		}
	}
	f.mu.RUnlock()
	slices.SortFunc(out, func(a, b SupplierMinimum) int { return cmp.Compare(a.GLN.Int64(), b.GLN.Int64()) })
	return out
}
