package web

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"kluis/meter"
)

// Case is a metering point that an employee opened, and why. Addresses of pages
// hold its id, which means nothing outside of the session.
type Case struct {
	ID     string
	EAN    meter.EAN
	Reason string // a ticket; in the access log
	Opened time.Time
}

// Path is the address of a page of the case: Path("/log"), or Path("") for the
// connection itself.
func (c *Case) Path(page string) string { return "/c/" + c.ID + page }

// caseData is what of it is sealed.
type caseData struct {
	EAN    string    `json:"ean"`
	Reason string    `json:"reason"`
	Opened time.Time `json:"opened"`
}

// openCase opens a case in the session of a request.
func (p *Portal) openCase(r *http.Request, ean meter.EAN, reason string) (*Case, error) {
	id := secret()
	c := &Case{ID: hex.EncodeToString(id[:]), EAN: ean, Reason: reason, Opened: p.now().UTC().Truncate(time.Second)}
	return c, p.keepCase(r.Context(), visitOf(r).Session.id, id[:], c)
}

func (p *Portal) keepCase(ctx context.Context, session, id []byte, c *Case) error {
	raw, err := json.Marshal(caseData{c.EAN.String(), c.Reason, c.Opened})
	if err != nil {
		return err
	}
	return p.store.AddCase(ctx, session, id, p.sealed("case", caseKey(session, id), raw))
}

func caseKey(session, id []byte) []byte { return append(append([]byte{}, session...), id...) }

// findCase is a case of a session; errNoCase when it has none such.
func (p *Portal) findCase(ctx context.Context, s *session, hexID string) (*Case, error) {
	id, err := hex.DecodeString(hexID)
	if err != nil || len(id) != 16 || hex.EncodeToString(id) != hexID {
		return nil, errNoCase
	}
	sealed, err := p.store.Case(ctx, s.id, id)
	if err != nil {
		return nil, err
	}
	if sealed == nil {
		return nil, errNoCase
	}
	return p.parseCase(s.id, id, sealed)
}

func (p *Portal) parseCase(session, id, sealed []byte) (*Case, error) {
	raw, err := p.open("case", caseKey(session, id), sealed)
	if err != nil {
		return nil, errors.New("a case does not open: it was changed in the database")
	}
	var d caseData
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("a case: %w", err)
	}
	c := &Case{ID: hex.EncodeToString(id), Reason: d.Reason, Opened: d.Opened}
	if c.EAN, err = meter.ParseEAN(d.EAN); err != nil {
		return nil, errors.New("a case holds no metering point")
	}
	return c, nil
}

// cases are those of a session, the latest first.
func (p *Portal) cases(ctx context.Context, session []byte) ([]*Case, error) {
	var list []*Case
	var errs []error
	err := p.store.Cases(ctx, session, func(id, sealed []byte) {
		c, err := p.parseCase(session, id, sealed)
		list, errs = append(list, c), append(errs, err)
	})
	return list, errors.Join(append(errs, err)...)
}

// moveCases takes the cases of a session into the one that follows it.
func (p *Portal) moveCases(ctx context.Context, from, to []byte) error {
	list, err := p.cases(ctx, from)
	if err != nil {
		return err
	}
	for i := len(list) - 1; i >= 0; i-- { // the latest last
		id, err := hex.DecodeString(list[i].ID)
		if err != nil {
			return err
		}
		if err := p.keepCase(ctx, to, id, list[i]); err != nil {
			return err
		}
	}
	return nil
}
