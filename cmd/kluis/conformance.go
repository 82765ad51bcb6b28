package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/cmd/kluis/demo"
	"kluis/conformance"
	"kluis/internal/config"
	"kluis/meter"
)

type conformanceCmd struct {
	Run  conformanceRunCmd  `cmd:"" help:"Make the requests, and say of each whether it was answered as it must be."`
	List conformanceListCmd `cmd:"" help:"Explain the cases, with the commands that make each request by hand."`
	Seed conformanceSeedCmd `cmd:"" help:"Store the metering points in an installation for tests; the demo has them."`
}

// packTarget says which installation, and which cases.
type packTarget struct {
	State        string   `help:"State folder of a demo. Default: $$KLUIS_STATE." type:"path" placeholder:"DIR" xor:"installation"`
	ReadyFile    string   `help:"Ready file of a demo." type:"path" placeholder:"FILE" xor:"installation"`
	Installation string   `help:"How to reach any other installation: docs/CONFORMANCE.md has the format." type:"path" placeholder:"FILE" xor:"installation"`
	Case         []string `help:"Only the cases of these names; a trailing * stands for any ending. Repeatable." placeholder:"NAME"`
	JSON         bool     `help:"Print JSON."`
}

func (t *packTarget) load() (*conformance.Installation, error) {
	path, state := t.Installation, t.State
	if t.ReadyFile != "" {
		b, err := os.ReadFile(t.ReadyFile)
		if err != nil {
			return nil, err
		}
		var ready struct{ State string }
		if err := json.Unmarshal(b, &ready); err != nil || ready.State == "" {
			return nil, usage("%s is no ready file of a demo", t.ReadyFile)
		}
		state = ready.State
	}
	if path == "" && state == "" {
		state = os.Getenv("KLUIS_STATE")
	}
	switch {
	case path != "":
	case state != "":
		path = filepath.Join(state, conformance.InstallationName)
	default:
		return nil, usage("say which installation: --state DIR or --ready-file FILE (of a demo), or --installation FILE")
	}
	return conformance.LoadInstallation(path)
}

// pack asks the installation for what the pack depends on, and takes the cases
// named.
func (t *packTarget) pack(ctx context.Context, target conformance.Target) (*conformance.Pack, []conformance.Case, error) {
	p, err := conformance.Ask(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	if len(t.Case) == 0 {
		return p, p.Cases, nil
	}
	var cases []conformance.Case
	for _, c := range p.Cases {
		if slices.ContainsFunc(t.Case, func(name string) bool { return named(name, c.Name) }) {
			cases = append(cases, c)
		}
	}
	for _, name := range t.Case {
		if !slices.ContainsFunc(cases, func(c conformance.Case) bool { return named(name, c.Name) }) {
			return nil, nil, usage("there is no case %s: kluis conformance list", name)
		}
	}
	return p, cases, nil
}

func named(pattern, name string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	return name == pattern || open && strings.HasPrefix(name, prefix)
}

type conformanceRunCmd struct{ packTarget }

// Help says more than fits a line.
func (conformanceRunCmd) Help() string {
	return `Requests are made as the test suppliers make them: over mutual TLS, with an access token. Each answer is compared whole: a field, a day or a value more fails a case as one less does. The cases change nothing, and may be run as often as one likes.

Exit codes: 0 every case passed, 1 some failed, 4 the installation does not answer.`
}

// shownDifferences is how much of what differs in one case is printed.
const shownDifferences = 10

func (c *conformanceRunCmd) Run(ctx context.Context, s streams) error {
	i, err := c.load()
	if err != nil {
		return err
	}
	target, err := i.Target()
	if err != nil {
		return err
	}
	defer target.Close()
	p, cases, err := c.pack(ctx, target)
	if err != nil {
		return err
	}
	results := []conformance.Result{}
	count := map[conformance.Outcome]int{}
	err = conformance.Run(ctx, p, cases, target, func(r conformance.Result) {
		results = append(results, r)
		count[r.Outcome]++
		if c.JSON {
			return
		}
		fmt.Fprintf(s.out, "%s  %s\n", r.Outcome, r.Case)
		for n, d := range r.Differences {
			if n == shownDifferences {
				fmt.Fprintf(s.out, "      and %d more\n", len(r.Differences)-n)
				break
			}
			fmt.Fprintf(s.out, "      %s\n", d)
		}
		if r.Outcome == conformance.Fail && r.Interaction != "" {
			fmt.Fprintf(s.out, "      interactionId %s\n", r.Interaction)
		}
	})
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(s.out, results)
	} else {
		fmt.Fprintf(s.out, "\n%d passed, %d failed, %d left out.\n", count[conformance.Pass], count[conformance.Fail], count[conformance.Skipped])
	}
	if err == nil && count[conformance.Fail] > 0 {
		err = fmt.Errorf("%d of %d cases were not answered as they must be", count[conformance.Fail], len(cases))
	}
	return err
}

type conformanceListCmd struct{ packTarget }

// Help says more than fits a line.
func (conformanceListCmd) Help() string {
	return `Without --case: what there is. With it: of each case named what it shows, the request, what must be answered in a line, and the commands that make it by hand. --json prints the whole answers wanted, for tests of one's own.`
}

// caseView is a case as --json prints it.
type caseView struct {
	Name     string              `json:"case"`
	Says     string              `json:"says"`
	Supplier string              `json:"supplier"`
	GLN      string              `json:"gln"`
	Request  conformance.Request `json:"request"`
	Want     conformance.Answer  `json:"want"`
}

func (c *conformanceListCmd) Run(ctx context.Context, s streams) error {
	i, err := c.load()
	if err != nil {
		return err
	}
	target, err := i.Target()
	if err != nil {
		return err
	}
	defer target.Close()
	p, cases, err := c.pack(ctx, target)
	if err != nil {
		return err
	}
	if c.JSON {
		views := make([]caseView, len(cases))
		for n, k := range cases {
			by := p.Suppliers[k.Supplier]
			views[n] = caseView{k.Name, k.Says, by.Name, by.GLN.String(), k.Request, k.Want}
		}
		return printJSON(s.out, views)
	}
	if len(c.Case) > 0 {
		for _, k := range cases {
			by := p.Suppliers[k.Supplier]
			fmt.Fprintf(s.out, "%s\n  %s.\n  %s asks: %s %s\n  must be answered %s\n\n%s\n\n", k.Name, k.Says, by.Name, k.Request.Method, k.Request.Target(),
				k.Want.Summary(), i.Curl(p, k))
		}
		return nil
	}
	fmt.Fprintf(s.out, "Seeded on %s. Test suppliers:\n\n", i.Seeded)
	rows := [][]string{{"NAME", "GLN", "IS THERE FOR"}}
	for _, by := range p.Suppliers {
		rows = append(rows, []string{by.Name, by.GLN.String(), by.Is})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nMetering points:\n\n")
	rows = [][]string{{"NAME", "EAN", "SHOWS"}}
	for _, m := range p.Points {
		rows = append(rows, []string{m.Name, m.EAN.String(), m.Shows})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nCases; kluis conformance list --case NAME has the commands to try one by hand:\n\n")
	rows = [][]string{{"CASE", "AS", "SHOWS"}}
	for _, k := range cases {
		rows = append(rows, []string{k.Name, p.Suppliers[k.Supplier].Name, k.Says})
	}
	return table(s.out, rows)
}

type conformanceSeedCmd struct {
	Config       string `help:"Operator's configuration file. Default: $$KLUIS_CONFIG." type:"path" placeholder:"FILE" env:"KLUIS_CONFIG" required:""`
	Certificates string `help:"Folder with the test suppliers' client certificates and keys, of the suppliers' CA: north.crt, north.key, south.crt and so on." type:"existingdir" placeholder:"DIR" required:""`
	GatewayURL   string `name:"gateway-url" help:"Base URL of the API, as suppliers reach it." placeholder:"URL" required:""`
	IssuerURL    string `name:"issuer-url" help:"Base URL of the issuer." placeholder:"URL" required:""`
	CAFile       string `name:"ca-file" help:"The authority of these two servers' certificates." type:"existingfile" placeholder:"FILE" required:""`
	Installation string `help:"Where to write how to reach the installation, for run and list. If it is there, what was interrupted goes on." type:"path" placeholder:"FILE" required:""`
}

// Help says more than fits a line.
func (conformanceSeedCmd) Help() string {
	return `Registers the test suppliers, takes the steps of the metering points' legal files, stores their readings, and erases one customer's, each as it is done for real ones: it needs the rights of the registrar, of ingest and of the custodian. The numbers begin with 952, which GS1 keeps for demonstrations, so no real customer is touched; seed installations for tests all the same. What was stored stays: an installation can be seeded once.`
}

func (c *conformanceSeedCmd) Run(ctx context.Context, s streams) error {
	conf, err := config.Load[config.Operator](c.Config)
	if err != nil {
		return err
	}
	profile, err := backend.Profile(conf)
	if err != nil {
		return err
	}
	seeded := meter.DayOf(time.Now(), profile.Location())
	i, err := conformance.LoadInstallation(c.Installation)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unseeded(ctx, conf, profile, seeded); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if seeded, err = meter.ParseDay(i.Seeded); err != nil {
			return fmt.Errorf("%s: %w", c.Installation, err)
		}
	}
	pack, err := demo.PackOf(profile, seeded)
	if err != nil {
		return err
	}
	next := conformance.Installation{GatewayURL: c.GatewayURL, IssuerURL: c.IssuerURL, CAFile: c.CAFile, Seeded: seeded.String(), Suppliers: map[string]conformance.Pair{}}
	certs := map[string]*x509.Certificate{}
	for _, by := range pack.Suppliers {
		pair := conformance.Pair{CertificateFile: filepath.Join(c.Certificates, by.Name+".crt"), KeyFile: filepath.Join(c.Certificates, by.Name+".key")}
		cert, err := readCertificate(pair.CertificateFile)
		if err == nil {
			err = acceptable(cert, conf.SuppliersCAFile, time.Now())
		}
		if err != nil {
			return fmt.Errorf("certificate of the test supplier %s: %w", by.Name, err)
		}
		certs[by.Name], next.Suppliers[by.Name] = cert, pair
	}
	if _, err := next.Target(); err != nil { // the keys are there, too
		return err
	}
	// Kept before anything is stored: what is begun goes on with the same days.
	if err := next.Write(c.Installation); err != nil {
		return err
	}
	_, next.Settled, err = demo.SeedPack(ctx, conf, seeded, func(by conformance.Supplier) (*x509.Certificate, error) { return certs[by.Name], nil })
	if err != nil {
		return fmt.Errorf("%w\nTo go on, run the same command again", err)
	}
	if err := next.Write(c.Installation); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "Seeded: %d test suppliers, %d metering points. Next: kluis conformance run --installation %s\n", len(pack.Suppliers), len(pack.Points), c.Installation)
	return nil
}

// unseeded refuses an installation that has metering points of the pack.
func unseeded(ctx context.Context, conf config.Operator, profile *meter.Profile, seeded meter.Day) error {
	pack, err := demo.PackOf(profile, seeded)
	if err != nil {
		return err
	}
	reg, err := backend.OpenRegistrar(ctx, conf)
	if err != nil {
		return err
	}
	defer reg.Close()
	known := false
	for _, p := range pack.Points {
		_, err := reg.ChangeLegalFile(ctx, p.EAN, func(current *authz.LegalFile) ([]authz.Step, error) {
			known = known || current != nil
			return nil, nil
		})
		if err != nil {
			return err
		}
	}
	if known {
		return errors.New("the installation has metering points of the pack: it was seeded before, and what was stored stays. Give the file that was written then as --installation, or seed a new installation")
	}
	return nil
}
