package web

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"kluis/meter"
	"kluis/openapi/client"
)

// parseRecord reads a whole access record, and of its receipt how much was opened,
// into the words of the API, as far as the record itself says them. Like accessLeaf
// it is written out here: cmd/auditproof reads the same layout, and what checks
// shares nothing with what is checked.
func parseRecord(record, receipt []byte, profile *meter.Profile) (*client.AccessLogEntry, meter.EAN, error) {
	bad := func(what string) (*client.AccessLogEntry, meter.EAN, error) {
		return nil, meter.EAN{}, errors.New("the access record " + what)
	}
	r := &recordReader{b: record}
	if r.text() != "kluis/access-record" || r.u8() != 1 {
		return bad("cannot be read")
	}
	e := &client.AccessLogEntry{}
	copy(e.InteractionId[:], r.take(16))
	e.At = r.time()
	operation := r.u8()
	e.Caller.Gln = fmt.Sprintf("%013d", r.u64())
	r.take(64) // digests of the token's id and the certificate
	if employee, reason := r.text(), r.text(); employee != "" {
		e.Caller.Employee, e.Caller.Reason = &employee, &reason
	}
	number := r.u64()
	if purpose := meter.Purpose(r.u8()); purpose != 0 {
		word := client.Purpose(purpose.String())
		e.Purpose = &word
	}
	days := r.days()
	r.take(2*r.count() + 2) // fields asked for; resolution, kind
	if asOf := r.time(); asOf.UnixMicro() != 0 {
		e.AsOf = &asOf
	}
	if id := uuid.UUID(r.take(16)); id != uuid.Nil {
		e.ConsentId = &id
	}
	if action := r.u8(); action != 0 {
		step := recordSteps[action]
		e.Step = &step
	}
	outcome := r.u8()
	r.take(32 + 8 + 32) // legal file, its version, profile
	for range r.count() {
		g := client.AccessLogGranted{Field: r.field(profile)}
		runs := make([]meter.DayRange, r.count())
		for i := range runs {
			runs[i] = r.days()
		}
		r.u8() // kind
		g.Granularity = client.Resolution(meter.Resolution(r.u8()).String())
		g.LegalBasis = client.LegalBasis(meter.Basis(r.u8()).String())
		g.Rule = r.text()
		if !g.Granularity.Valid() || !g.LegalBasis.Valid() {
			return bad("gives something unknown")
		}
		for _, run := range runs {
			g.From, g.To = *apiDay(run.From), *apiDay(run.To)
			e.Granted = append(e.Granted, g)
		}
	}
	for range r.count() {
		h := client.Withheld{Field: r.field(profile)}
		run := r.days()
		h.From, h.To, h.Reason = *apiDay(run.From), *apiDay(run.To), client.WithheldReason(meter.Reason(r.u8()).String())
		if !h.Reason.Valid() {
			return bad("withholds for a reason unknown")
		}
		e.Withheld = append(e.Withheld, h)
	}
	if opened := r.u8() == 1; opened != (len(receipt) > 0) {
		return bad("and its receipt do not go together")
	} else if opened {
		r.take(32) // digest of the receipt, which the leaf holds too
		n, err := openedOf(receipt)
		if err != nil {
			return nil, meter.EAN{}, err
		}
		e.Opened = n
	}
	if r.short || len(r.b) > 0 {
		return bad("is cut off, or longer than it should be")
	}
	e.Operation, e.Outcome = recordOperations[operation], recordOutcomes[outcome]
	if !e.Operation.Valid() || !e.Outcome.Valid() || e.Purpose != nil && !e.Purpose.Valid() || e.Step != nil && !e.Step.Valid() {
		return bad("says something unknown")
	}
	if e.Operation == client.READINGS || e.Operation == client.DRYRUN {
		e.From, e.To = apiDay(days.From), apiDay(days.To)
	}
	if !slices.Contains([]client.AccessLogEntryOutcome{client.GIVEN, client.PARTLY, client.UNCHANGED}, e.Outcome) {
		e.Granted = nil // granted, but it did not leave
	}
	if e.Outcome != client.PARTLY && e.Outcome != client.WITHHELD {
		e.Withheld = nil
	}
	ean, err := meter.ParseEAN(fmt.Sprintf("%018d", number))
	return e, ean, err
}

// What the numbers of a record mean (docs/AUDIT.md), in the API's words; those of a
// record that is of no metering point have none.
var (
	recordOperations = map[uint8]client.AccessLogEntryOperation{1: client.READINGS, 3: client.DRYRUN, 4: client.CONSENTS, 5: client.CONSENTSTEP, 6: client.ACCESSLOG, 8: client.CONNECTION, 9: client.FIND}
	recordOutcomes   = map[uint8]client.AccessLogEntryOutcome{1: client.GIVEN, 2: client.PARTLY, 3: client.WITHHELD, 4: client.REFUSED, 5: client.FAILED, 6: client.REFUSED, 7: client.UNCHANGED}
	recordSteps      = map[uint8]client.AccessLogEntryStep{1: "REGISTER", 2: "GRANT", 3: "REJECT", 4: "REVOKE", 5: "REQUEST"}
)

// openedOf is how many blocks a receipt says that were opened.
func openedOf(receipt []byte) (int, error) {
	r := &recordReader{b: receipt}
	if r.text() != "kluis/receipt" || r.u8() != 1 {
		return 0, errors.New("the receipt cannot be read")
	}
	r.text()                                 // server
	r.take(len(r.b) - min(len(r.b), 4*3+32)) // up to the numbers, the last but the digest of what was opened
	n := int(r.u32())                        //nolint:gosec // 32 bits
	if r.take(4 + 4 + 32); r.short {
		return 0, errors.New("the receipt is cut off")
	}
	return n, nil
}

// recordReader reads big-endian fields; past the end it gives zeros and says so.
type recordReader struct {
	b     []byte
	short bool
}

func (r *recordReader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return make([]byte, min(n, 128))
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *recordReader) u8() uint8   { return r.take(1)[0] }
func (r *recordReader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *recordReader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// count is a number of what follows, each of two bytes or more.
func (r *recordReader) count() int {
	n := r.u32()
	if int64(n) > int64(len(r.b)/2) {
		r.short = true
		return 0
	}
	return int(n)
}

func (r *recordReader) text() string {
	n := r.u32()
	if int64(n) > int64(len(r.b)) {
		r.short = true
		return ""
	}
	return string(r.take(int(n)))
}

func (r *recordReader) time() time.Time {
	return time.UnixMicro(int64(r.u64())).UTC() //nolint:gosec // as it was written
}

func (r *recordReader) days() meter.DayRange {
	day := func() meter.Day { return meter.Day(int32(r.u32())) } //nolint:gosec // as it was written
	return meter.DayRange{From: day(), To: day()}
}

// field is the name of a field; one that the market does not have cannot be read.
func (r *recordReader) field(profile *meter.Profile) string {
	f, ok := profile.FieldByCode(meter.FieldCode(binary.BigEndian.Uint16(r.take(2))))
	if !ok {
		r.short = true
	}
	return f.Name
}
