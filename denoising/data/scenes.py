"""Scenes for Mitsuba 3, drawn from a seed: shapes, materials, textures, lights and cameras all differ.

    >>> scene = mitsuba.load_dict(draw_scene((0, 0, 3), width=256, height=256))

Four kinds take turns: things in the Cornell box, on a studio's floor, in a room lit through its window, and under
sun and sky. The very first scene is Mitsuba's own Cornell box as it comes. The floor is y = 0, a unit about a metre.
The caller has chosen Mitsuba's variant.
"""

import math

import cv2
import numpy as np

MAX_DEPTH = 9  # bounces of light: enough for glass in front of glass


def draw_scene(place, width, height, view=0):
    """A scene as the dictionary that `mitsuba.load_dict` takes.

    Its random choices follow from the whole numbers of `place`, of which the last is its number and tells its kind.
    Its views but the first are parts of what surrounds the first one, seen from the same spot.
    """
    import mitsuba as mi

    rng = np.random.default_rng(place)
    draw = (varied_cornell_box, studio, room, outdoors)[place[-1] % 4]
    parts = draw(rng) if any(place[1:]) else mi.cornell_box()
    scene = {"type": "scene", "integrator": {"type": "path", "max_depth": MAX_DEPTH}, **parts}
    film = {"type": "hdrfilm", "width": width, "height": height, "pixel_format": "rgb", "component_format": "float32"}
    if view:
        look_elsewhere(scene["sensor"], np.random.default_rng([*place, view]))
    # A box filter: no sample counts for two pixels, so that their noise is independent.
    scene["sensor"] |= {"film": film | {"rfilter": {"type": "box"}}, "sampler": {"type": "independent"}}
    return scene


# --- Kinds ------------------------------------------------------------------------------------------------


def varied_cornell_box(rng):
    """Mitsuba's box, with its walls in other colours and other things in it."""
    import mitsuba as mi

    scene, T = mi.cornell_box(), mi.ScalarTransform4f
    scene["red"], scene["green"] = diffuse(colour(rng)), diffuse(colour(rng))
    scene["back"]["bsdf"] = wall(rng)
    scene["floor"]["bsdf"] = wall(rng)
    wide, deep = rng.uniform(0.08, 0.4, 2)
    turned = T().translate([*rng.uniform(-0.4, 0.4, 1), 0.99, rng.uniform(-0.4, 0.4)]).rotate([1, 0, 0], 90)
    scene["light"]["to_world"] = turned.scale([wide, deep, 1])
    scene["light"]["emitter"] = area(rng, 1.5 / (wide * deep))
    for name in ("small-box", "large-box"):
        del scene[name]
    return scene | things(rng, int(rng.integers(2, 5)), radius=0.62, size=(0.22, 0.42), floor=-1.0)


def studio(rng):
    """Things on a floor that bends up into a backdrop, under a few lamps."""
    import mitsuba as mi

    T = mi.ScalarTransform4f
    scene = {
        "floor": {"type": "rectangle", "to_world": T().rotate([1, 0, 0], -90).scale(14), "bsdf": wall(rng, repeat=5)},
        "back": {"type": "rectangle", "to_world": T().translate([0, 0, -6]).scale(14), "bsdf": wall(rng, repeat=5)},
        "around": {"type": "constant", "radiance": rgb(rng.uniform(0.01, 0.25) * colour(rng, 0.3))},
        "sensor": camera(rng, distance=(4.5, 7.5), elevation=(8, 40), target=[0, 0.7, 0]),
    }
    places = []
    for _ in range(int(rng.integers(1, 4))):
        angle, height = rng.uniform(0, 2 * math.pi), rng.uniform(2.5, 6)
        places.append([4.5 * math.cos(angle), height, 4.5 * abs(math.sin(angle))])
    scene["lamps"] = lamps(rng, places, [0, 0.5, 0])
    return scene | things(rng, int(rng.integers(3, 9)), radius=2.4, size=(0.35, 0.95))


def room(rng):
    """A closed room: light comes through a window, and from a lamp at times."""
    import mitsuba as mi

    T = mi.ScalarTransform4f
    wide, high, deep = rng.uniform(2.6, 4), rng.uniform(2.6, 3.4), rng.uniform(2.6, 4)
    walls, ceiling = wall(rng, repeat=2), diffuse(rng.uniform(0.6, 0.85) * colour(rng, 0.1, bright=True))
    sides = {
        "floor": (T().rotate([1, 0, 0], -90).scale([wide, deep, 1]), wall(rng, repeat=2)),
        "ceiling": (T().translate([0, high, 0]).rotate([1, 0, 0], 90).scale([wide, deep, 1]), ceiling),
        "back": (T().translate([0, high / 2, -deep]).scale([wide, high / 2, 1]), wall(rng, repeat=2)),
        "front": (T().translate([0, high / 2, deep]).rotate([0, 1, 0], 180).scale([wide, high / 2, 1]), walls),
        "left": (T().translate([-wide, high / 2, 0]).rotate([0, 1, 0], 90).scale([deep, high / 2, 1]), walls),
        "right": (T().translate([wide, high / 2, 0]).rotate([0, 1, 0], -90).scale([deep, high / 2, 1]), walls),
    }
    scene = {name: {"type": "rectangle", "to_world": to, "bsdf": bsdf} for name, (to, bsdf) in sides.items()}
    # The window: a bright rectangle a little inside the wall, with bars before it.
    side, across, up = float(rng.choice([-1, 1])), rng.uniform(0.4, 1.3), rng.uniform(0.4, 0.9)
    middle = T().translate([side * (wide - 0.02), high * 0.55, rng.uniform(-1, 1)]).rotate([0, 1, 0], -90 * side)
    scene["window"] = {
        "type": "rectangle",
        "to_world": middle.scale([across, up, 1]),
        "emitter": area(rng, rng.uniform(6, 25) / (across * up)),
    }
    for i in range(int(rng.integers(0, 4))):
        bar = middle.translate([across * (0.5 * i - 0.5), 0, 0.06]).scale([0.03, up, 0.03])
        scene[f"bar{i}"] = {"type": "cube", "to_world": bar, "bsdf": diffuse(np.full(3, 0.1))}
    for i in range(int(rng.integers(0, 3))):
        picture = T().translate([rng.uniform(-1.5, 1.5), rng.uniform(1.2, 2), -deep + 0.04])
        size = [*rng.uniform(0.25, 0.6, 2), 0.03]
        scene[f"picture{i}"] = {"type": "cube", "to_world": picture.scale(size), "bsdf": textured(rng, 1)}
    if rng.random() < 0.4:
        place = [*rng.uniform(-1.2, 1.2, 1), high - 0.6, 0.0]
        scene["bulb"] = {
            "type": "point",
            "position": place,
            "intensity": rgb(rng.uniform(1, 5) * np.array([1, 0.8, 0.5])),
        }
    table_top, leg = rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.5)
    scene["table"] = {
        "type": "cube",
        "to_world": T().translate([0, table_top - 0.05, -0.6]).scale([leg, 0.05, leg * 0.7]),
        "bsdf": wall(rng, repeat=1),
    }
    sensor = camera(rng, distance=(2.3, min(wide, deep) * 0.9), elevation=(5, 25), target=[0, table_top + 0.2, -0.6])
    on_table = things(rng, int(rng.integers(2, 6)), radius=0.75 * leg * 0.8, size=(0.16, 0.36), floor=table_top)
    shifted = {f"table_{name}": shape for name, shape in on_table.items()}
    on_floor = things(rng, int(rng.integers(1, 4)), radius=wide * 0.8, size=(0.25, 0.5), hollow=leg * 1.1)
    return scene | shifted | on_floor | {"sensor": sensor}


def outdoors(rng):
    """Blocks, columns and smaller things on wide ground, under the sun and a sky."""
    import mitsuba as mi

    T = mi.ScalarTransform4f
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2)
    sun = [math.cos(azimuth) * math.cos(height), math.sin(height), math.sin(azimuth) * math.cos(height)]
    scene = {
        "ground": {
            "type": "rectangle",
            "to_world": T().rotate([1, 0, 0], -90).scale(400),
            "bsdf": wall(rng, repeat=160),
        },
        "sky": {
            "type": "sunsky",
            "sun_direction": sun,
            "turbidity": rng.uniform(2, 7),
            "sun_scale": 0.0,  # paths seldom find a sun as small as it is
            "to_world": T().rotate([1, 0, 0], -90),
        },
        "sensor": camera(rng, distance=(6, 10), elevation=(2, 28), target=[0, 1.2, 0]),
    }
    if rng.random() < 0.75:
        shine = rng.uniform(0.3, 3) * np.array([1, 0.9, 0.75])
        scene["sun"] = {"type": "directional", "direction": [-x for x in sun], "irradiance": rgb(shine)}
    for i in range(int(rng.integers(2, 8))):
        place, size = rng.uniform(-6, 6, 2), rng.uniform(0.3, 1.2, 3) * [1, 2.2, 1]
        if place[1] > 1:
            place[1] -= 7  # not between the camera and the rest
        to_world = T().translate([place[0], size[1], place[1]]).rotate([0, 1, 0], rng.uniform(0, 90)).scale(size)
        scene[f"block{i}"] = {"type": "cube", "to_world": to_world, "bsdf": wall(rng, repeat=2)}
    return scene | things(rng, int(rng.integers(3, 9)), radius=3.2, size=(0.35, 1.0))


# --- Lights and cameras -------------------------------------------------------------------------------------


def area(rng, strength):
    """The light of a surface: between a candle's and a clouded sky's colour."""
    warm = rng.uniform(0, 1)
    tint = np.array([1.0, 0.62, 0.3]) * warm + np.array([0.75, 0.88, 1.0]) * (1 - warm)
    return {"type": "area", "radiance": rgb(strength * tint)}


def lamps(rng, places, target):
    """Rectangles or one ball that shine: the smaller, the brighter and the harder their shadows."""
    import mitsuba as mi

    if rng.random() < 0.25:
        radius = rng.uniform(0.05, 0.6)
        ball = {"type": "sphere", "center": places[0], "radius": radius}
        return ball | {"emitter": area(rng, rng.uniform(3, 8) / radius**2)}
    corners, quads, shine = np.array([[-1, -1, 0, 1], [1, -1, 0, 1], [1, 1, 0, 1], [-1, 1, 0, 1]]), [], 0.0
    for place in places:
        size = rng.uniform(0.08, 1.2)
        quads.append(
            corners @ np.array(mi.ScalarTransform4f().look_at(place, target, [0.01, 1, 0]).scale(size).matrix).T
        )
        shine += size**2
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(len(quads))])
    vertices = np.concatenate(quads)[:, :3]
    # One shape, because Mitsuba keeps several by their place in memory: the same seed would give other noise each time.
    return mesh(vertices, faces, vertices[:, :2], emitter=area(rng, rng.uniform(20, 50) / shine))


def camera(rng, distance, elevation, target):
    """Somewhere in front, at times with a lens that blurs what lies out of its focus."""
    import mitsuba as mi

    away, up = rng.uniform(*distance), math.radians(rng.uniform(*elevation))
    around = math.radians(rng.uniform(-55, 55))
    place = np.array([math.sin(around) * math.cos(up), math.sin(up), math.cos(around) * math.cos(up)]) * away + target
    aim = np.array(target) + rng.uniform(-0.3, 0.3, 3)
    to_world = mi.ScalarTransform4f().look_at(place.tolist(), aim.tolist(), [0, 1, 0])
    sensor = {"type": "perspective", "fov": rng.uniform(32, 55), "near_clip": 0.01, "to_world": to_world}
    if rng.random() < 0.25:
        focus = away * rng.uniform(0.75, 1.0)
        sensor |= {"type": "thinlens", "focus_distance": focus, "aperture_radius": away * rng.uniform(0.005, 0.02)}
    return sensor


def look_elsewhere(sensor, rng):
    """Turns a camera where it stands, where no wall can come between, and lets it see less, and that larger."""
    import mitsuba as mi

    turn = mi.ScalarTransform4f().rotate([0, 1, 0], rng.uniform(-14, 14)).rotate([1, 0, 0], rng.uniform(-8, 8))
    sensor |= {"to_world": sensor["to_world"] @ turn, "fov": sensor["fov"] * rng.uniform(0.45, 0.9)}


# --- Things ---------------------------------------------------------------------------------------------------


def things(rng, count, radius, size, floor=0.0, hollow=0.0):
    """Shapes that stand beside one another on a floor, at most `radius` and at least `hollow` from its middle."""
    taken, scene = [], {}
    for i in range(count):
        big = rng.uniform(*size)
        for _ in range(40):
            angle, away = rng.uniform(0, 2 * math.pi), max(hollow, radius * math.sqrt(rng.uniform()))
            x, z = away * math.cos(angle), away * math.sin(angle)
            if all(math.hypot(x - a, z - b) > 0.8 * (big + c) for a, b, c in taken):
                taken.append((x, z, big))
                scene[f"thing{i}"] = thing(rng, x, floor, z, big)
                break
    return scene


def thing(rng, x, y, z, size):
    """A ball, block, turned vessel or ring of some material that stands on y."""
    import mitsuba as mi

    T, bsdf = mi.ScalarTransform4f, material(rng)
    kind = rng.choice(["sphere", "cube", "vessel", "ring"], p=[0.3, 0.2, 0.3, 0.2])
    if kind == "sphere":
        to_world = T().translate([x, y + size, z]).rotate([0.6, 0.8, 0], rng.uniform(0, 360)).scale(size)
        return {"type": "sphere", "to_world": to_world, "bsdf": bsdf}
    if kind == "cube":
        sides = size * rng.uniform(0.5, 1.0, 3)
        to_world = T().translate([x, y + sides[1], z]).rotate([0, 1, 0], rng.uniform(0, 90)).scale(sides)
        return {"type": "cube", "to_world": to_world, "bsdf": bsdf}
    if kind == "vessel":
        return mesh(*placed(vessel(rng), T().translate([x, y, z]).scale(size)), bsdf=bsdf)
    thick = rng.uniform(0.18, 0.4)
    lying = T().translate([x, y + thick * size, z])
    standing = T().translate([x, y + (1 + thick) * size * 0.8, z]).rotate([0, 1, 0], rng.uniform(0, 180)).scale(0.8)
    to_world = lying if rng.random() < 0.5 else standing.rotate([1, 0, 0], 90)
    return mesh(*placed(ring(thick), to_world.scale(size)), bsdf=bsdf)


def vessel(rng):
    """Vertices, faces and texture coordinates of a closed turned shape of height 2: vase, cone, pawn, bottle."""
    knots = rng.uniform(0.25, 0.9, 5)
    knots[0] = max(knots[0], 0.45)  # it stands
    t = np.linspace(0, 1, 48)
    outline = np.interp(t * 4, np.arange(5), knots)
    outline = cv2.GaussianBlur(outline[:, None], (1, 9), 2.5, borderType=cv2.BORDER_REPLICATE)[:, 0]
    outline[0] = outline[-1] = 0.001  # closed at both ends
    height = 2 * t
    height[1], height[-2] = 0.001, 1.999
    return revolved(outline, height)


def ring(thick):
    """A torus of outer radius 1 + thick that lies flat about the origin."""
    t = np.linspace(0, 2 * np.pi, 32)
    return revolved(1 + thick * np.cos(t), thick * np.sin(t))


def revolved(radius, height, around=64):
    """The surface that an outline of (radius, height) sweeps about the y axis, in so many steps."""
    turn = np.linspace(0, 2 * np.pi, around)
    x, z = radius[:, None] * np.cos(turn), radius[:, None] * np.sin(turn)
    vertices = np.stack([x, np.broadcast_to(height[:, None], x.shape), z], axis=2).reshape(-1, 3)
    v, u = np.meshgrid(np.linspace(0, 1, len(radius)), turn / (2 * np.pi), indexing="ij")
    corner = (np.arange(len(radius) - 1)[:, None] * around + np.arange(around - 1)).reshape(-1, 1)
    faces = np.concatenate([corner + [0, around, 1], corner + [1, around, around + 1]])
    return vertices, faces, np.stack([u, v], axis=2).reshape(-1, 2)


def placed(surface, to_world):
    """Vertices, faces and texture coordinates, moved to their place."""
    vertices, faces, uv = surface
    matrix = np.array(to_world.matrix)
    return vertices @ matrix[:3, :3].T + matrix[:3, 3], faces, uv


def mesh(vertices, faces, uv, **parts):
    """A mesh as Mitsuba's own object, with smooth normals; `parts` are its bsdf or emitter."""
    import mitsuba as mi

    properties = mi.Properties()
    for name, part in parts.items():
        properties[name] = mi.load_dict(part)
    made = mi.Mesh("mesh", len(vertices), len(faces), has_vertex_texcoords=True, props=properties)
    parameters = mi.traverse(made)
    parameters["vertex_positions"] = vertices.astype(np.float32).ravel()
    parameters["faces"] = faces.astype(np.uint32).ravel()
    parameters["vertex_texcoords"] = uv.astype(np.float32).ravel()
    parameters.update()
    return made


# --- Materials and textures -----------------------------------------------------------------------------------


def rgb(values):
    """A colour in linear light."""
    return {"type": "rgb", "value": [float(value) for value in values]}


def colour(rng, saturation=0.75, bright=False):
    """A reflectance of any hue."""
    hue = 2 * np.pi * (rng.uniform() + np.array([0, 1 / 3, 2 / 3]))
    value = rng.uniform(0.65, 0.85) if bright else rng.uniform(0.15, 0.75)
    return np.clip(value * (1 - saturation * rng.uniform() * (0.5 - 0.5 * np.cos(hue))), 0.02, 0.9)


def diffuse(reflectance):
    """Matt paint."""
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": rgb(reflectance)}}


def textured(rng, repeat):
    """Matt, with a pattern."""
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": texture(rng, repeat)}}


def wall(rng, repeat=1):
    """What floors and walls are made of: paint, a pattern, or a pattern under varnish."""
    kind = rng.choice(["paint", "pattern", "varnish"], p=[0.3, 0.45, 0.25])
    if kind == "paint":
        return diffuse(colour(rng, 0.5, bright=True))
    if kind == "pattern":
        return textured(rng, repeat)
    shine = {"type": "roughplastic", "alpha": rng.uniform(0.05, 0.25), "diffuse_reflectance": texture(rng, repeat)}
    return {"type": "twosided", "bsdf": shine}


def material(rng):
    """What things are made of."""
    kinds = ["diffuse", "textured", "plastic", "metal", "mirror", "glass", "frosted", "lacquer"]
    kind = rng.choice(kinds, p=[0.15, 0.17, 0.15, 0.17, 0.06, 0.14, 0.06, 0.10])
    if kind == "diffuse":
        return diffuse(colour(rng))
    if kind == "textured":
        return textured(rng, int(rng.integers(1, 4)))
    if kind == "plastic":
        return {"type": "roughplastic", "alpha": rng.uniform(0.02, 0.3), "diffuse_reflectance": rgb(colour(rng, 1.0))}
    if kind == "metal":
        metal = str(rng.choice(["Au", "Cu", "Al", "Cr", "W", "Ag"]))
        return {"type": "roughconductor", "material": metal, "alpha": rng.uniform(0.03, 0.4), "distribution": "ggx"}
    if kind == "mirror":
        return {"type": "conductor", "material": "Ag", "specular_reflectance": rgb(colour(rng, 0.3, bright=True))}
    if kind == "glass":
        tint = 1 - rng.uniform(0, 0.35) * rng.uniform(0, 1, 3)
        return {"type": "dielectric", "int_ior": rng.uniform(1.3, 1.7), "specular_transmittance": rgb(tint)}
    if kind == "frosted":
        return {"type": "roughdielectric", "int_ior": rng.uniform(1.3, 1.6), "alpha": rng.uniform(0.05, 0.3)}
    lacquer = {"type": "principled", "base_color": texture(rng, 2) if rng.random() < 0.5 else rgb(colour(rng, 1.0))}
    return lacquer | {"metallic": rng.uniform(0, 0.7), "roughness": rng.uniform(0.15, 0.6), "clearcoat": 1.0}


def texture(rng, repeat):
    """A pattern between two or three colours, as a bitmap."""
    import mitsuba as mi

    kind = rng.choice(["checks", "stripes", "tiles", "marble", "wood", "stains", "spots"])
    side = 256
    y, x = np.mgrid[0:side, 0:side] / side
    cloud = turbulence(rng, side)
    if kind == "checks":
        squares = int(rng.integers(2, 7)) * 2
        values = (np.floor(x * squares) + np.floor(y * squares)) % 2
    elif kind == "stripes":
        values = (np.floor((x if rng.random() < 0.5 else x + y) * int(rng.integers(4, 14)) * 2) % 2).astype(float)
    elif kind == "tiles":
        rows = int(rng.integers(3, 8))
        shift = 0.5 * (np.floor(y * rows) % 2)
        joint = (np.abs((x * rows / 2 + shift) % 1 - 0.5) > 0.46) | (np.abs(y * rows % 1 - 0.5) > 0.44)
        values = np.where(joint, 0.0, 0.7 + 0.3 * cloud)
    elif kind == "marble":
        values = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.integers(1, 3) * (x + y) + 1.5 * cloud))
    elif kind == "wood":
        values = (3 * x + 1.2 * cloud + 0.15 * np.sin(8 * np.pi * y)) % 1
    elif kind == "stains":
        values = cloud
    else:
        count = int(rng.integers(3, 9))
        values = ((x * count % 1 - 0.5) ** 2 + (y * count % 1 - 0.5) ** 2 < rng.uniform(0.03, 0.15)).astype(float)
    first, second, grain = colour(rng), colour(rng, bright=True), rng.uniform(0, 0.15)
    pixels = first + (second - first) * values[..., None] * (1 - grain + grain * cloud[..., None])
    bitmap = mi.Bitmap(np.clip(pixels, 0.01, 0.95).astype(np.float32))
    # Linear already: no gamma is to be undone.
    to_uv = mi.ScalarTransform4f().scale([repeat, repeat, 1])
    return {"type": "bitmap", "bitmap": bitmap, "raw": True, "to_uv": to_uv}


def turbulence(rng, side):
    """Cloudy noise of all scales in 0..1."""
    total = np.zeros((side, side))
    for level in range(1, 6):
        grid = rng.uniform(-1, 1, (2**level + 1, 2**level + 1)).astype(np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) / 1.7**level
    return np.clip(0.5 + 0.5 * total, 0, 1)
