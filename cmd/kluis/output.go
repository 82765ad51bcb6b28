package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/meter"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table writes columns, the first row being the heading.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, c := range r {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, c)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// thousands writes 58645 as "58,645".
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func dayOrOpen(d meter.Day) string {
	if d == meter.MaxDay {
		return ""
	}
	return d.String()
}

type supplierView struct {
	GLN          string            `json:"gln"`
	Name         string            `json:"name"`
	Version      uint64            `json:"version"`
	Suspended    bool              `json:"suspended"`
	Scopes       []string          `json:"scopes"`
	Certificates []certificateView `json:"certificates"`
	Changed      bool              `json:"changed"`
}

type certificateView struct {
	Thumbprint string     `json:"thumbprint"`
	NotAfter   time.Time  `json:"notAfter"`
	RevokedAt  *time.Time `json:"revokedAt,omitempty"`
}

func printSupplier(w io.Writer, s *authz.Supplier, changed, asJSON bool) error {
	v := supplierView{GLN: s.GLN().String(), Name: s.Name(), Version: s.Version(), Suspended: s.Suspended(), Scopes: s.Scopes(), Changed: changed}
	for _, c := range s.Certificates() {
		cv := certificateView{Thumbprint: hex.EncodeToString(c.Thumbprint[:]), NotAfter: c.NotAfter}
		if !c.RevokedAt.IsZero() {
			cv.RevokedAt = &c.RevokedAt
		}
		v.Certificates = append(v.Certificates, cv)
	}
	if asJSON {
		return printJSON(w, v)
	}
	state := ""
	if v.Suspended {
		state = ", suspended"
	}
	if !changed {
		state += ", nothing changed"
	}
	fmt.Fprintf(w, "%s %s: version %d%s, scopes %v\n", v.GLN, v.Name, v.Version, state, v.Scopes)
	if len(v.Certificates) == 0 {
		return nil
	}
	rows := [][]string{{"CERTIFICATE (SHA-256)", "NOT AFTER", "REVOKED"}}
	for _, c := range v.Certificates {
		revoked := ""
		if c.RevokedAt != nil {
			revoked = c.RevokedAt.Format(time.RFC3339)
		}
		rows = append(rows, []string{c.Thumbprint, c.NotAfter.Format(time.RFC3339), revoked})
	}
	return table(w, rows)
}

type legalFileView struct {
	EAN         string        `json:"ean"`
	Commodity   string        `json:"commodity"`
	Version     uint64        `json:"version"`
	Occupancies []daysView    `json:"occupancies"`
	Supply      []supplyView  `json:"supplyPeriods"`
	Consents    []consentView `json:"consents"`
	OptOuts     []daysView    `json:"optOuts"`
}

type daysView struct {
	From string `json:"from"`
	To   string `json:"to,omitempty"` // exclusive; none: open
}

type supplyView struct {
	Supplier string `json:"supplier"`
	daysView
}

type consentView struct {
	ID          string   `json:"id"`
	Supplier    string   `json:"supplier"`
	Purpose     string   `json:"purpose"`
	Classes     []string `json:"classes"`
	Granularity string   `json:"granularity"`
	daysView
	ValidUntil time.Time  `json:"validUntil"`
	RevokedAt  *time.Time `json:"revokedAt,omitempty"`
}

func days(r meter.DayRange) daysView { return daysView{r.From.String(), dayOrOpen(r.To)} }

func consentViewOf(c authz.Consent) consentView {
	v := consentView{ID: uuid.UUID(c.ID).String(), Supplier: c.Supplier.String(), Purpose: c.Purpose.String(),
		Granularity: c.Granularity.String(), daysView: days(c.Days), ValidUntil: c.ValidUntil}
	for _, class := range c.Classes {
		v.Classes = append(v.Classes, class.String())
	}
	if !c.Revoked.IsZero() {
		v.RevokedAt = &c.Revoked.At
	}
	return v
}

func printLegalFile(w io.Writer, f *authz.LegalFile, asJSON bool) error {
	v := legalFileView{EAN: f.EAN().String(), Commodity: f.Commodity().String(), Version: f.Version(),
		Occupancies: []daysView{}, Supply: []supplyView{}, Consents: []consentView{}, OptOuts: []daysView{}}
	rows := [][]string{{"WHAT", "FROM", "TO", "SUPPLIER", "MORE"}}
	for _, o := range f.Occupancies() {
		v.Occupancies = append(v.Occupancies, days(o.Days))
		rows = append(rows, []string{"occupancy", o.Days.From.String(), dayOrOpen(o.Days.To), "", ""})
	}
	for _, s := range f.SupplyPeriods() {
		v.Supply = append(v.Supply, supplyView{s.Supplier.String(), days(s.Days)})
		rows = append(rows, []string{"supply", s.Days.From.String(), dayOrOpen(s.Days.To), s.Supplier.String(), ""})
	}
	for _, c := range f.Consents() {
		cv := consentViewOf(c)
		v.Consents = append(v.Consents, cv)
		more := fmt.Sprintf("%s %s %v until %s", cv.Purpose, cv.Granularity, cv.Classes, cv.ValidUntil.Format(time.RFC3339))
		if cv.RevokedAt != nil {
			more += ", revoked " + cv.RevokedAt.Format(time.RFC3339)
		}
		rows = append(rows, []string{"consent " + cv.ID, cv.From, cv.To, cv.Supplier, more})
	}
	for _, o := range f.OptOuts() {
		v.OptOuts = append(v.OptOuts, days(o))
		rows = append(rows, []string{"opted out", o.From.String(), dayOrOpen(o.To), "", ""})
	}
	if asJSON {
		return printJSON(w, v)
	}
	fmt.Fprintf(w, "%s, %s: legal file version %d\n", v.EAN, v.Commodity, v.Version)
	return table(w, rows)
}

// progress shows how far a long command is, on a terminal on one line that is
// written over, else by a line now and then.
type progress struct {
	w        io.Writer
	terminal bool
	began    time.Time
	last     time.Time
	shown    int
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, began: time.Now(), last: time.Now()}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			p.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	return p
}

func (p *progress) say(format string, args ...any) {
	every := 5 * time.Second
	if p.terminal {
		every = 100 * time.Millisecond
	}
	if time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	line := fmt.Sprintf(format, args...)
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprintf(p.w, "\r%-*s", p.shown, line)
	p.shown = len(line)
}

// done wipes the line.
func (p *progress) done() {
	if p.terminal && p.shown > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.shown, "")
	}
}

// bar shows how far of a known total a long command is, with its pace.
func (p *progress) bar(what string, done, total int64) {
	p.say("%s", barLine(what, done, total, time.Since(p.began), p.terminal))
}

// barWidth is the number of characters between the brackets of a bar.
const barWidth = 24

func barLine(what string, done, total int64, elapsed time.Duration, terminal bool) string {
	share := 1.0
	if total > 0 {
		share = min(float64(done)/float64(total), 1)
	}
	line := fmt.Sprintf("%s  %s of %s (%d %%)", what, thousands(int(done)), thousands(int(total)), int(100*share))
	if full := int(barWidth * share); terminal {
		line = fmt.Sprintf("%s  [%s%s]  %s of %s (%d %%)", what, strings.Repeat("#", full), strings.Repeat(".", barWidth-full),
			thousands(int(done)), thousands(int(total)), int(100*share))
	}
	if elapsed < time.Second || done == 0 {
		return line
	}
	pace := float64(done) / elapsed.Seconds()
	left := time.Duration(float64(max(total-done, 0)) / pace * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("%s, %s/s, %s left", line, thousands(int(pace)), left)
}
