package web

// oversightRoutes are those of templates/oversight.html.
func (p *Portal) oversightRoutes() []route { return nil }
