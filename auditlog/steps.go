package auditlog

import (
	"context"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/internal/audit"
)

// Who took a step of a consent is in the sealed legal file; who the customer is
// told took it, in the access record, which is the gateway's to write. So a
// captured gateway could put a step down to somebody else, leave it out of the
// log, or tell of one that nobody took. An honest one stores both in one
// transaction.

// toldStep is a record that says that a step was taken.
type toldStep struct {
	audit.Record
	leaf int64
}

// told looks whether each legal file that a step of a supplier or an employee
// made came with exactly one record, and that with the step as it is sealed.
func (v *verifier) told(ctx context.Context, files []*authz.LegalFile) error {
	if len(files) == 0 {
		return nil
	}
	keys := make([]leaf.Key, len(files))
	for i, f := range files {
		keys[i] = leaf.Key{Kind: leaf.LegalFile, Number: f.EAN().Int64(), Version: int64(f.Version())}
	}
	records, err := v.RecordsWith(ctx, keys)
	if err != nil {
		return err
	}
	for i, f := range files {
		found := describe(StepNotRecorded, keys[i], -1)
		found.At = f.SealedAt()
		switch came := records[i]; len(came) {
		case 0:
			found.Detail = "no record came with it"
		case 1:
			found.Interaction = uuidText(came[0].ID)
			rec, err := audit.Parse(came[0].Content, nil)
			if err != nil || rec.Operation != audit.ConsentStep || rec.Outcome != audit.Given {
				found.Detail = "the record that came with it is not of a step that was taken"
				break
			}
			found.What, found.Detail = StepOtherwise, otherwise(&rec, f)
		default:
			found.What, found.Detail = StepOtherwise, "more than one record came with it"
		}
		if found.Detail != "" {
			v.rep.add(found)
		}
	}
	return nil
}

// otherwise says in what a record differs from the step that made a legal file;
// "": in nothing.
func otherwise(rec *audit.Record, f *authz.LegalFile) string {
	switch step := f.Step(); {
	case rec.EAN != f.EAN() || rec.FileVersion != f.Version() || rec.LegalFile != f.Digest():
		return "its record names another legal file"
	case rec.Action != authz.ActionOf(step):
		return "its record tells of another step"
	case rec.ConsentID != consentOf(step):
		return "its record tells of another consent"
	}
	return unknown(rec, f)
}

// taken looks whether the legal files that records of steps name know of them. A
// request that is sent again is recorded again, with the file as it is by then:
// so the step need not be the one that made the file.
func (v *verifier) taken(ctx context.Context, steps []toldStep) error {
	for len(steps) > 0 {
		var keys []leaf.Key
		at := map[leaf.Key]int{}
		n := 0
		for ; n < len(steps); n++ {
			k := steps[n].file()
			if _, ok := at[k]; ok {
				continue
			} else if len(keys) == pageFiles {
				break
			}
			at[k] = len(keys)
			keys = append(keys, k)
		}
		rows, err := v.Rows(ctx, keys)
		if err != nil {
			return err
		}
		files := make([]*authz.LegalFile, len(rows))
		for i, row := range rows {
			if row == nil {
				continue
			}
			if f, err := v.o.Seals.LegalFile(row.Content); err == nil && f.EAN().Int64() == row.Number && f.Version() == uint64(row.Version) {
				files[i] = f
			}
		}
		for i := range steps[:n] {
			s := &steps[i]
			f := files[at[s.file()]]
			if f == nil || f.Digest() != s.LegalFile {
				continue // told: it is not the one that is stored, or nobody sealed it
			}
			if why := unknown(&s.Record, f); why != "" {
				found := describe(RecordedNotTaken, leaf.Key{Kind: leaf.Access, ID: s.InteractionID, Number: s.EAN.Int64()}, s.leaf)
				found.Version, found.At, found.Detail = int64(s.FileVersion), s.At, why
				v.rep.add(found)
			}
		}
		steps = steps[n:]
	}
	return nil
}

func (s *toldStep) file() leaf.Key {
	return leaf.Key{Kind: leaf.LegalFile, Number: s.EAN.Int64(), Version: int64(s.FileVersion)}
}

// unknown says why a legal file does not bear out what a record tells: that its
// caller took a step of a consent; "": it does. It names nobody.
func unknown(rec *audit.Record, f *authz.LegalFile) string {
	c, ok := f.Consent(rec.ConsentID)
	if !ok {
		return "no such consent is in the legal file"
	}
	var event authz.ConsentEvent
	switch asked := !c.Requested.IsZero(); {
	case rec.Action == authz.ActionRequest:
		event = c.Requested
	case rec.Action == authz.ActionRevoke:
		event = c.Revoked
	case rec.Action == authz.ActionRegister && !asked,
		rec.Action == authz.ActionGrant && asked && c.Given(),
		rec.Action == authz.ActionReject && c.State == authz.ConsentRejected:
		event = c.Answered
	}
	switch {
	case event.IsZero():
		return "no such step of the consent was taken"
	case !isBy(rec, event.By):
		return "somebody else took the step"
	case rec.Purpose != c.Purpose:
		return "the consent is for another purpose"
	}
	return ""
}

// isBy says whether a record's caller is who took a step. What the operator's
// registrar did is in no record.
func isBy(rec *audit.Record, a authz.Actor) bool {
	switch a.Kind {
	case authz.BySupplier:
		return rec.Employee == "" && rec.Supplier.String() == a.Name
	case authz.ByCustomer:
		return rec.Employee == a.Name
	}
	return false
}

// consentOf is the consent that a step is of; zero for any other step.
func consentOf(s authz.Step) [16]byte {
	switch s := s.(type) {
	case authz.RequestConsent:
		return s.ID
	case authz.GrantConsent:
		return s.ID
	case authz.AcceptConsent:
		return s.ID
	case authz.RejectConsent:
		return s.ID
	case authz.RevokeConsent:
		return s.ID
	}
	return [16]byte{}
}
